"""PEFT adapters: which base they stand on, made, injected, merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignlab.config import holds_adapter

from .quantised import is_quantised, prepare_quantised

# Ways to initialise an adapter that leave the base weights as they were; PiSSA, OLoRA, CorDA and LoftQ rewrite them.
_INITS_THAT_LEAVE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def base_path(path: str) -> str:
    """Returns the model itself, or of a folder that holds an adapter the base model that it names."""
    if not holds_adapter(path):
        return path
    from peft import PeftConfig

    base: str = PeftConfig.from_pretrained(path).base_model_name_or_path
    return base


def is_peft(model: nn.Module) -> bool:
    """True for a model that carries PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def peft_options(options: Mapping[str, Any]) -> Any:
    """Returns the PEFT configuration for options under their PEFT names; ``peft_type`` defaults to LORA."""
    from peft import get_peft_config

    return get_peft_config({"peft_type": "LORA", "task_type": "CAUSAL_LM", **options})


def add_adapter(model: PreTrainedModel, config: Any) -> Any:
    """Injects a new adapter, after k-bit preparation of a quantised base; its weights are float32."""
    from peft import get_peft_model

    return get_peft_model(prepare_quantised(model), config)


def leaves_base_alone(config: Any) -> bool:
    """True if initialising an adapter by this PEFT configuration leaves the base weights as they were."""
    return getattr(config, "init_lora_weights", None) in _INITS_THAT_LEAVE_THE_BASE


def merge_adapter(model: Any, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Merges the adapter into its base and saves the whole as a plain model.

    A quantised base is dequantised first: merging into 4-bit weights would round the adapter away.
    """
    if not is_peft(model):
        raise ValueError("model.merge_adapter: the trained model has no adapter to merge")
    merged = model.merge_and_unload() if not is_quantised(model) else _merged_dequantised(model)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _merged_dequantised(model: Any) -> Any:
    """Returns the dequantised base with the adapter merged in; ``model`` loses its adapter."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapter = {name: value.detach().clone() for name, value in get_peft_model_state_dict(model).items()}
    config = model.peft_config[model.active_adapter]
    again = get_peft_model(model.unload().dequantize(), config)
    set_peft_model_state_dict(again, adapter)
    return again.merge_and_unload()
