"""The module itself, whatever engine wraps it: unwrapped, whole, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def unwrap(model: nn.Module) -> Any:
    """Returns the model behind DDP, DeepSpeed or torch.compile, which all keep it as ``module`` or ``_orig_mod``."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def unsharded() -> Iterator[None]:
    """Within it, models are loaded whole, also in a run whose policy ZeRO-3 shards as it is loaded."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def is_sharded_at_load() -> bool:
    """True if ZeRO-3 shards models as they are loaded."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def check_one_device(name: str, model: nn.Module) -> None:
    """Raises a ValueError, beginning with ``name``, for a model whose layers were dealt to several devices."""
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise ValueError(
            f"{name}: device_map has put it on several devices ({', '.join(places)}), but batches go to one; load it "
            "without device_map, and for weights too large for one device give deepspeed: zero3.json"
        )


@contextmanager
def placed(model: nn.Module, device: torch.device, *, stays: bool) -> Iterator[None]:
    """Within it a model that lies elsewhere is on ``device``, and afterwards too if it ``stays`` there.

    The Trainer of transformers leaves a model where it was loaded if an engine is to place it later (ZeRO, FSDP), or if
    a whole evaluation is to run in half precision. Shards, and weights stored in bits, stay where they are.
    """
    before = device if _is_settled(model) else next(model.parameters()).device
    if before != device:
        model.to(device)
    try:
        yield
    finally:
        if before != device and not stays:
            model.to(before)


def _is_settled(model: nn.Module) -> bool:
    """True for a model that an engine has sharded or is about to, or that has weights which cannot be moved."""
    return is_sharded_at_load() or any(
        hasattr(one, "ds_id") or hasattr(one, "placements") or not one.is_floating_point() for one in model.parameters()
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs ``model`` without gradient and without dropout, and leaves its modules' modes as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
