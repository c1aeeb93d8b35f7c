"""Policy, tokenizer, 4-bit base and adapters: from names and options to modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignlab.config import ModelOptions
from alignlab.runtime import is_sharded_at_load

# Ways to initialise an adapter that leave the base weights as they were; PiSSA, OLoRA, CorDA and LoftQ rewrite them.
_INITS_THAT_LEAVE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def torch_dtype(name: str) -> torch.dtype | str:
    """Returns the torch dtype called ``name``, or "auto" as it is."""
    return name if name == "auto" else getattr(torch, name)


def load_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """Loads the tokenizer; pads with EOS where it has no pad token, and takes the chat template that was asked for."""
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer or options.name_or_path,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    if options.chat_template is not None:
        tokenizer.chat_template = Path(options.chat_template).read_text(encoding="utf-8")
    return tokenizer


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that pads rows. Padding is never attended to nor scored, so EOS serves where there is no pad."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def quantisation(options: ModelOptions) -> BitsAndBytesConfig | None:
    """Returns the bitsandbytes configuration that the options ask for, or None."""
    if options.load_in_4bit:
        compute = options.bnb_4bit_compute_dtype or ("float32" if options.dtype == "auto" else options.dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=torch_dtype(compute),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if options.load_in_8bit else None


def load_model(options: ModelOptions, path: str | None = None) -> PreTrainedModel:
    """Loads ``path`` (by default the policy) as the options say: dtype, attention, quantisation, adapter.

    A folder that holds an adapter is loaded on the base model that it names. Weights come from safetensors.
    """
    path = path or options.name_or_path
    adapter = options.adapter if path == options.name_or_path else None
    if (Path(path) / "adapter_config.json").is_file():
        from peft import PeftConfig

        adapter, path = path, PeftConfig.from_pretrained(path).base_model_name_or_path
    quantised = quantisation(options)
    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=options.revision,
        dtype=torch_dtype(options.dtype),
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
        quantization_config=quantised,
        # ZeRO-3 places weights itself, and refuses a map.
        device_map={"": _local_device()} if quantised is not None and not is_sharded_at_load() else None,
        use_safetensors=True,
    )
    guard_quantised(model)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(prepare_quantised(model), adapter, is_trainable=True)
    return model


def _local_device() -> torch.device:
    """Returns this rank's accelerator, or the CPU: quantised weights are placed as they are loaded."""
    from accelerate import PartialState

    return PartialState().device if torch.cuda.is_available() else torch.device("cpu")


def is_quantised(model: nn.Module) -> bool:
    """True if the base weights are stored in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def guard_quantised(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    There bitsandbytes 0.50.2 repacks the weights of every ``Linear4bit`` in a forward in eval mode; training then
    takes an op without autograd: LoRA gradients are 75% wrong and saved weights corrupt, with only a warning. The
    flag is per module, so it has to be set on each before the first forward.
    """
    if not is_quantised(model):
        return
    import bitsandbytes as bnb

    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ValueError(
                    f"the 4-bit weights of {name} are already repacked for CPU inference: gradients through them are "
                    "wrong. Load the model anew and give it to alignlab before running it in eval mode"
                )
            module.support_avx512bf16_for_cpu = False


def prepare_quantised(model: PreTrainedModel) -> PreTrainedModel:
    """Makes a quantised base ready for adapters: norms in float32, inputs that carry gradient. Others as they are."""
    if not is_quantised(model):
        return model
    from peft import prepare_model_for_kbit_training

    checkpointing = bool(getattr(model, "is_gradient_checkpointing", False))
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)


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


def is_peft(model: nn.Module) -> bool:
    """True for a model that carries PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


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
