"""What a loss returned, looked at wherever a loss is called: types, shapes, devices, gradient, names of metrics."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

REWARDS = ("chosen_rewards", "rejected_rewards", "rewards")
# What the trainer logs itself; a metric of a loss under such a name would stand in the place of the trainer's figure.
RESERVED = ("loss", "objective", "padding", "aux_loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos")
RESERVED_PREFIXES = (
    *("logps/", "logps_per_token/", "lengths/", "rewards/", "speed/", "memory/", "generation/"),
    *("train_", "eval_", "test_"),
)


def check_returned(loss: Any, out: Any, like: Tensor, *, output_type: type) -> None:
    """Raises where a loss returned what cannot be trained on; looks at no value, so that no device is waited for.

    Args:
        loss: the loss, which the message names by file, line and class. out: what its ``forward`` returned.
        like: log-probabilities ``[N, T]`` or values ``[N, V]`` of the batch, ``[N, K, ...]`` of lists: the loss must
            have N rows, on their device, and a gradient where they have one; rewards are one number a completion.
        output_type: ``LossOutput``.

    Raises:
        ValueError: ``mine.py:12 (MyLoss.forward): ...`` with what was found and what is allowed.
    """
    for fault in faults(out, like, output_type):
        raise ValueError(f"{place(loss)}: {fault}")


def faults(out: Any, like: Tensor, output_type: type) -> Iterator[str]:
    """Yields what is wrong with what a loss returned; see ``check_returned``."""
    if not isinstance(out, output_type):
        yield f"forward must return a LossOutput, found {_found(out)}; write LossOutput(loss) with loss [N]"
        return
    values: Any = out
    yield from _loss_faults(values.loss, like)
    for name in REWARDS:
        rewards = getattr(values, name)
        if rewards is not None and not _fits(rewards, like):
            yield f"{name} must be None or a tensor {list(like.shape[:-1])} on {like.device}, found {_found(rewards)}"
    if not isinstance(values.metrics, dict):
        yield f"metrics must be a mapping of names to (sum, count), found {_found(values.metrics)}"
        return
    for name, metric in values.metrics.items():
        yield from _metric_faults(name, metric, like)


def _loss_faults(loss: Any, like: Tensor) -> Iterator[str]:
    rows = len(like)
    if not isinstance(loss, Tensor):
        yield f"the loss must be a tensor [{rows}], one number a row, found {_found(loss)}"
    elif loss.shape != (rows,):
        yield (
            f"the loss must have shape [{rows}], one number a row, found {list(loss.shape)}: do not reduce over rows, "
            "the trainer does"
        )
    elif not loss.is_floating_point():
        yield f"the loss must be floating point, found {loss.dtype}"
    elif loss.device != like.device:
        yield f"the loss must be on {like.device}, where the batch is, found {loss.device}"
    elif like.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        yield "the loss has no gradient, so nothing would be learned: is it detached, or made under no_grad?"


def _metric_faults(name: Any, metric: Any, like: Tensor) -> Iterator[str]:
    pair = isinstance(metric, (tuple, list)) and len(metric) == 2
    if not pair or not all(isinstance(one, Tensor) and one.dim() == 0 for one in metric):
        found = f"[{', '.join(map(_found, metric))}]" if pair else _found(metric)
        yield f"metrics[{name!r}] must be (sum, count), two tensors of no dimension, found {found}"
    elif any(one.device != like.device for one in metric):
        yield f"metrics[{name!r}] must be on {like.device}, where the batch is, found {[str(m.device) for m in metric]}"
    if not isinstance(name, str) or name in RESERVED or name.startswith(RESERVED_PREFIXES):
        yield f"metrics[{name!r}]: the trainer logs its own figure under this name; choose another"


def _fits(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape[:-1] and value.device == like.device


def _found(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} on {value.device}"
    return "None" if value is None else f"a {type(value).__name__}"


def place(loss: Any) -> str:
    """Returns where a loss is computed: ``path/to/mine.py:12 (MyLoss.forward)``, or its function's file and line."""
    target = inspect.unwrap(getattr(loss, "function", None) or type(loss).forward)
    name = getattr(target, "__qualname__", type(loss).__name__)
    code = getattr(target, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} ({name})" if code is not None else str(name)
