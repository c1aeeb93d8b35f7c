"""Liger's kernels in the layers of a model, held to what the model computes without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.liger import apply_liger_kernel

from alignlab.runtime import evaluating, is_sharded_at_load, unwrap

from .values import value_head

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")  # of Liger, that are never used here
_FULL, _HALF = 1e-3, 0.1  # nats; half precision rounds between kernels in other places


def use_liger(model: nn.Module, kernels: Mapping[str, bool] | None) -> None:
    """Puts Liger's kernels in the place of a model's norms, rotations and MLPs, for good.

    Log-probabilities of eight tokens before and after must agree within 1e-3 nats, 0.1 in half precision.

    Args:
        model: a causal LM or a reward model, also inside PEFT, where it can run.
        kernels: what ``liger_kernel_config`` says, without the kernels of losses.

    Raises:
        ValueError: Liger does not know the model, or computes something else than it does; the model is then no good.
    """
    if is_sharded_at_load():
        raise ValueError("use_liger_kernel: true cannot be held against a model that ZeRO-3 shards when it is loaded")
    name, forwards = type(unwrap(model)).__name__, _forwards(model)
    expected = _scores(model)
    apply_liger_kernel(model, dict(kernels or {}))
    if _forwards(model) == forwards:
        raise ValueError(f"use_liger_kernel: Liger has no kernels for {name}; leave it out")
    try:
        found = _scores(model)
    except Exception as error:
        raise ValueError(f"use_liger_kernel: {name} does not run with Liger's kernels: {error}") from error
    allowed = _FULL if expected.dtype in (torch.float32, torch.float64) else _HALF
    distance = (found.double() - expected.double()).abs().max().item()
    if not distance <= allowed:
        raise ValueError(
            f"use_liger_kernel: with Liger's kernels {name} computes something else: log-probabilities differ by "
            f"{distance:.2g} nats (allowed {allowed:g})"
        )


def liger_name(kernels: Mapping[str, bool] | None) -> str:
    """Returns what scores made with Liger's kernels are kept under: which were chosen by name, losses aside."""
    given = sorted((name, on) for name, on in (kernels or {}).items() if name not in _LOSSES)
    chosen = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in given)
    return f"liger ({chosen})" if chosen else "liger"


def _forwards(model: nn.Module) -> dict[str, tuple[type, Any]]:
    """Returns what every module would run: its class, and the forward of its own if it has one."""
    return {
        name: (type(module), getattr(vars(module).get("forward"), "__func__", vars(module).get("forward")))
        for name, module in model.named_modules()
    }


def _scores(model: nn.Module) -> Tensor:
    """Returns the log-probabilities ``[8, V]`` behind eight tokens, or the values of a value head, in its dtype."""
    device = unwrap(model).get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None]
    with torch.no_grad(), evaluating(model):
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits if value_head(model) is not None else logits.float().log_softmax(-1).to(logits.dtype)
