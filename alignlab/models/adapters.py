"""PEFT adapters: which base they stand on, made, injected, saved, merged."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignlab.config import holds_adapter

from .adapter_kinds import check_adapter, kind_of, start_of, type_of
from .naming import loading
from .quantised import is_quantised, prepare_quantised
from .value_heads import save_reading, widen_head

logger = logging.getLogger(__name__)
_START = "adapter_start"  # what an adapter's weights began as, where the base weights lack it for good
_WEIGHTS = "adapter_model.safetensors"


def base_path(path: str) -> str:
    """Returns the model itself, or of a folder that holds an adapter the base model that it names."""
    if not holds_adapter(path):
        return path
    base: str = adapter_config(path).base_model_name_or_path
    return base


def adapter_config(path: str) -> Any:
    """Returns the PEFT configuration of a saved adapter, in a folder or on the hub.

    Raises:
        ValueError: there is none, or it cannot be read; names the keys that say where adapters are.
    """
    from peft import PeftConfig

    with loading("adapter", path):
        return PeftConfig.from_pretrained(path)


def is_peft(model: nn.Module) -> bool:
    """True for a model that carries PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def peft_options(options: Mapping[str, Any], outputs: int = 0) -> Any:
    """Returns the PEFT configuration for options under their PEFT names; ``peft_type`` defaults to LORA.

    Args:
        outputs: of the model's value head, which the adapter then trains and saves too; 0 for a language model.
    """
    from peft import get_peft_config

    return get_peft_config({"peft_type": "LORA", "task_type": "SEQ_CLS" if outputs else "CAUSAL_LM", **options})


def add_adapter(model: PreTrainedModel, config: Any) -> Any:
    """Injects a new adapter, after k-bit preparation of a quantised base; its weights are float32.

    Raises:
        ValueError: an adapter of this kind could not be trained, saved and loaded exactly.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    check_adapter(config, quantised=is_quantised(model))
    names = [name for name, _ in model.named_modules()]
    for asked in getattr(config, "modules_to_save", None) or ():
        if not any(name.endswith(asked) for name in names):
            raise ValueError(f"peft.modules_to_save: the model has no module {asked!r}, and PEFT would leave it out")
    try:
        adapted = get_peft_model(prepare_quantised(model), config)
    except (
        re.error,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # no pattern, no such module, no such token
        raise ValueError(f"peft: the adapter cannot be put on the model: {type(error).__name__}: {error}") from error
    if model.get_output_embeddings() is None:
        widen_head(adapted)
    if not kind_of(config).again:
        weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        start = {name: value.detach().cpu().clone() for name, value in weights.items() if _axis(name) is not None}
        setattr(adapted, _START, start)
    return adapted


def leaves_base_alone(config: Any) -> bool:
    """True if initialising an adapter by this PEFT configuration leaves the base weights as they were."""
    return not kind_of(config).rewrites


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of a model to 0, but those of its adapters, which are asked for by a name of their own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    own = {id(inner) for layer in layers for inner in layer.modules()}
    own -= {id(inner) for layer in layers for inner in layer.get_base_layer().modules()}
    for module in model.modules():
        if id(module) in own:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # rates handed to functions: attention's; all of OPT's, BioGPT's
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def refuse_unrepeatable(folder: str, *, beside: bool = False) -> None:
    """Refuses a saved adapter that would not score as it did, because loading it makes another start.

    Args:
        beside: it is loaded beside another adapter, on whose base it then stands.

    Raises:
        ValueError: names the folder, and what to give in its place.
    """
    config = adapter_config(folder)
    kind = kind_of(config)
    if type_of(config) == "LORA" and (not kind.again or (beside and kind.rewrites)):
        why = "would rewrite the base under the other adapter" if kind.again else "is not the same when it is loaded"
        raise ValueError(
            f"{folder}: an adapter that started by init_lora_weights: {config.init_lora_weights!r} {why}; give a "
            "merged model, or the folder of a finished run, where such a start is saved as plain LoRA"
        )


def save_as_plain(model: Any, folder: Path) -> None:
    """Rewrites a saved adapter that took a random or learnt part out of the base as plain LoRA on the whole base.

    Formula: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0], of twice the rank. It is exact up to the rounding of the
    base's dtype, and needs neither seed nor rows when it is loaded. Other adapters are left as they are.
    """
    start = getattr(model, _START, None)
    if start is None:
        return
    weights = load_file(folder / _WEIGHTS)
    for name, began in start.items():
        signed = began if _axis(name) == 0 else -began
        weights[name] = torch.cat([weights[name], signed.to(weights[name])], dim=_axis(name) or 0).contiguous()
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    alpha = 2**0.5 if config.get("use_rslora") else 2  # of alpha / sqrt(r), or alpha / r, as it was
    config |= {"init_lora_weights": True, "corda_config": None}
    config |= {"r": 2 * config["r"], "lora_alpha": alpha * config["lora_alpha"]}
    for key, factor in (("rank_pattern", 2), ("alpha_pattern", alpha)):
        config[key] = {layer: factor * value for layer, value in (config.get(key) or {}).items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _axis(name: str) -> int | None:
    """Returns along which axis of an adapter's weight its rank runs; None for other weights."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def merge_adapter(model: Any, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Merges the adapter into its base and saves the whole as a plain model.

    A quantised base is dequantised first: merging into 4-bit weights would round the adapter away.
    """
    if not is_peft(model):
        raise ValueError("model.merge_adapter: the trained model has no adapter to merge")
    merged = _merged(model) if not is_quantised(model) else _merged_dequantised(model)
    merged.save_pretrained(folder)
    save_reading(model, folder)
    tokenizer.save_pretrained(folder)


def _merged(model: Any) -> Any:
    """Returns the base with the adapter merged in; tied embeddings of which it changes one stand apart from then on.

    Merged into the weight that both share, what was trained on one of them would change the other, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    inner = [one.get_base_layer() if isinstance(one, BaseTunerLayer) else one for one in ends]
    adapted = any(isinstance(one, BaseTunerLayer) for one in ends)
    if adapted and getattr(inner[1], "weight", None) is getattr(inner[0], "weight", None) is not None:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
        logger.warning("merged: the adapter is on embeddings that are tied, which the merged model has apart")
    return model.merge_and_unload()


def _merged_dequantised(model: Any) -> Any:
    """Returns the dequantised base with the adapter merged in; ``model`` loses its adapter."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapter = {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    if type_of(config) == "LORA" and start_of(config) != "mica":
        config.init_lora_weights = True  # what the base gave to the start it has given: OLoRA would take it once more
    again = get_peft_model(model.unload().dequantize(), config)
    set_peft_model_state_dict(again, adapter)
    return _merged(again)
