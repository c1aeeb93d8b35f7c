"""Trained weights in half precision: refused where small steps would vanish in them and nothing makes up for it."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch
from torch import nn

from alignlab.config import PreferenceConfig
from alignlab.runtime import Numerics

logger = logging.getLogger(__name__)
_HALF = (torch.float16, torch.bfloat16)
# Optimisers that transformers knows by name and that step half-precision weights without losing what is rounded away:
# name -> the module it comes from, the package to install, what `optim_args` must say, and what it does.
_EXACT = {
    "stable_adamw": ("optimi", "torch-optimi", "", "Kahan sums"),
    "adamw_torch_8bit": ("torchao", "torchao", "bf16_stochastic_round=True", "stochastic rounding"),
    "adamw_torch_4bit": ("torchao", "torchao", "bf16_stochastic_round=True", "stochastic rounding"),
}
_WAYS_OUT = (
    "Ways out: model.dtype: float32 with bf16: true (autocast: the same arithmetic, exact weights); an adapter, which "
    "is float32 (peft: {r: 16}); or an optimiser that keeps float32 weights beside them, as DeepSpeed's bf16 does "
    "(deepspeed: zero2.json with bf16: true). To step half-precision weights all the same, ask for it by name: optim: "
    "stable_adamw (Kahan sums, package torch-optimi), or optim: adamw_torch_8bit with optim_args: "
    "bf16_stochastic_round=True (stochastic rounding, package torchao)"
)


def check_masters(policy: nn.Module, args: PreferenceConfig, numerics: Numerics, *, own_optimiser: bool) -> None:
    """Refuses to train half-precision weights that nothing keeps in float32.

    A bfloat16 weight has 8 significant bits: a step below 1/512 of it is rounded away, every time (of 40 steps at a
    rate of 1e-6, 98% of a small model's weights saw none). DeepSpeed's optimisers keep float32 weights, accelerate
    makes FSDP's float32 under mixed precision, PEFT makes adapters float32.

    Args:
        own_optimiser: the caller brought an optimiser, which may do as it likes; that is only said.

    Raises:
        ValueError: with the ways out; or the optimiser that was asked for is not installed, or not told to round so.
    """
    if numerics.weights is not None:  # the engine's optimiser keeps float32 weights
        return
    half = [(name, one.dtype) for name, one in policy.named_parameters() if one.requires_grad and one.dtype in _HALF]
    if not half:
        return
    name, dtype = half[0]
    found = f"{len(half)} trained weights are {str(dtype).removeprefix('torch.')} (first {name})"
    if own_optimiser:
        logger.warning("model.dtype: %s; whether small steps vanish in them is up to the optimiser given", found)
        return
    optim = str(getattr(args.optim, "value", args.optim))
    if optim not in _EXACT:
        if ".modules_to_save." in name:
            raise ValueError(
                f"peft.modules_to_save: {found}, as the base is, and nothing keeps them in float32: steps below "
                "1/512 of a weight vanish. Set model.dtype: float32 and bf16: true (autocast; 4-bit weights stay "
                "4-bit), or leave modules_to_save out"
            )
        raise ValueError(
            f"model.dtype: {found}, and nothing keeps them in float32: steps below 1/512 of a weight vanish, which at "
            f"the learning rates of preference training are nearly all. {_WAYS_OUT}"
        )
    module, package, needed, does = _EXACT[optim]
    if find_spec(module) is None:
        raise ValueError(f"optim: {optim} needs the package {package}: pip install {package}")
    if needed not in (args.optim_args or "").replace(" ", ""):
        raise ValueError(
            f"optim_args: {optim} rounds steps away unless told otherwise; expected {needed}, found {args.optim_args!r}"
        )
    if needed and dtype == torch.float16:
        raise ValueError(f"optim: {optim} rounds stochastically in bfloat16 only; found {found}")
    logger.info("model.dtype: %s, stepped with %s by %s", found, does, optim)
