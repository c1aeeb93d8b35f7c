"""Bases whose weights are stored in 4 or 8 bits: recognised, guarded, made ready for adapters."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


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
