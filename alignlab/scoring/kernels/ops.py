"""Attention over trees as custom operators: opaque to torch.compile, with shapes for tracing and a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignlab.data import AttentionPlan

from . import cpu, cuda
from .cpu import accumulator


@torch.library.custom_op("alignlab::tree_attention", mutates_args=())
def tree_forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, table: Tensor, plan: list[int], scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Returns attention ``[T, H, D]`` and log-sum-exp ``[H, T]`` of a flat row.

    A sink is one more logit s in the softmax of every query of its head, without a value: with the log-sum-exp L of
    the keys alone, attention becomes out exp(L - L') for L' = log(exp L + exp s), and L' takes the place of L. On a
    CPU that is rounded to the dtype of ``q`` once; flash attention on a GPU gives rounded outputs, and the product in
    float32 is rounded again.

    Args:
        q: ``[T, H, D]``; ``k`` and ``v``: ``[T, G, D]``, H a multiple of G.
        sinks: ``[H]`` or None.
        table, plan: an ``AttentionPlan``; ``plan`` has its four numbers.
        scale: of the products of queries and keys.
        window: positions that a query sees, itself included; below 0: all.
    """
    parts = AttentionPlan(table, *plan).parts()
    if q.device.type == "cpu":
        # With sinks in float32 throughout: the kernel rounds its output to the dtype of its inputs.
        kind = q.dtype if sinks is None else accumulator(q.dtype)
        out, lse = cpu.forward(q.to(kind), k.to(kind), v.to(kind), parts, scale, window)
    else:
        out, lse = cuda.forward(q, k, v, parts, (plan[2], plan[3]), scale, window)
    if sinks is not None:
        whole = torch.logaddexp(lse, sinks[:, None].to(lse.dtype))
        out = out * (lse - whole).exp().T[..., None]
        lse = whole
    return out.to(q.dtype), lse


@tree_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=accumulator(q.dtype))


@torch.library.custom_op("alignlab::tree_attention_backward", mutates_args=())
def tree_backward(
    grad: Tensor, saved: list[Tensor], table: Tensor, plan: list[int], scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of ``q``, ``k`` and ``v``; ``saved`` has them, and what the forward returned."""
    q, k, v, out, lse = saved
    parts, grad = AttentionPlan(table, *plan).parts(), grad.contiguous()
    if q.device.type == "cpu":
        return cpu.backward(grad, (q, k, v, out, lse), parts, scale, window)
    return cuda.backward(grad, (q, k, v, out, lse), parts, (plan[2], plan[3]), scale, window)


@tree_backward.register_fake
def _(grad: Tensor, saved: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *_rest = saved
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sinks, table, plan, scale, window = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, sinks, table)
    ctx.rest = plan, scale, window
    ctx.mark_non_differentiable(lse)


def _gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, out, lse, sinks, table = ctx.saved_tensors
    gradients = tree_backward(grad, [q, k, v, out, lse], table, *ctx.rest)
    of_sinks = None
    if sinks is not None:
        along = (grad * out).sum(-1, dtype=lse.dtype).T
        of_sinks = -((sinks[:, None] - lse).exp() * along).sum(1).to(sinks.dtype)
    return (*gradients, of_sinks, None, None, None, None)


tree_forward.register_autograd(_gradient, setup_context=_keep)
