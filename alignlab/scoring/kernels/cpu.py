"""The plain causal sequences of a plan on the CPU, by torch's flash attention for CPUs, sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Part(NamedTuple):
    """One call of the kernel: queries of the row, gathered keys, and what of them is seen."""

    queries: slice
    keys: Tensor  # the tokens behind them
    causal: bool
    mask: Tensor | None
    first: bool  # of those of its queries


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums are made: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(q: Tensor, k: Tensor, v: Tensor, parts: list[Tensor], scale: float, window: int) -> tuple[Tensor, Tensor]:
    """Returns the attention ``[T, H, D]`` of a row and its log-sum-exp ``[H, T]``.

    The kernel aligns causal sequences at their beginning. Queries that have keys before their own are therefore
    attended in two calls, merged by their log-sum-exps; where the window bites, and in half precision, whose
    rounding two calls would double, in one with a mask that lives for the call.

    Args:
        q: ``[T, H, D]``; ``k`` and ``v``: ``[T, G, D]``.
        parts: of the plan's table.
        window: positions that a query sees, itself included; below 0: all.
    """
    kind, heads = accumulator(q.dtype), q.shape[1]
    out, lse = torch.empty_like(q, dtype=kind), q.new_empty(heads, q.shape[0], dtype=kind)
    for one in _calls(q, parts, window):
        keys, values = _rows(k, one.keys, heads), _rows(v, one.keys, heads)
        new, new_lse = _FORWARD(_batch(q[one.queries]), keys, values, 0.0, one.causal, attn_mask=one.mask, scale=scale)
        rows, old = new[0].transpose(0, 1), lse[:, one.queries]
        if one.first:
            out[one.queries], lse[:, one.queries] = rows, new_lse[0]
            continue
        both = torch.logaddexp(old, new_lse[0])
        weights = ((one_lse - both).exp().T[..., None] for one_lse in (old, new_lse[0]))
        out[one.queries] = out[one.queries] * next(weights) + rows * next(weights)
        lse[:, one.queries] = both
    return out.to(q.dtype), lse


def backward(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], parts: list[Tensor], scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of ``q``, ``k`` and ``v``; those of a prompt's copies are summed in float32.

    Args:
        saved: ``q``, ``k``, ``v``, and what ``forward`` returned.
    """
    q, k, v, out, lse = saved
    kind, (heads, groups) = accumulator(q.dtype), (q.shape[1], k.shape[1])
    dq, dk, dv = (torch.zeros_like(one, dtype=kind) for one in (q, k, v))

    def home(gradient: Tensor) -> Tensor:
        rows = gradient[0].transpose(0, 1).to(kind)
        return rows if heads == groups else rows.view(len(rows), groups, heads // groups, -1).sum(2)

    for one in _calls(q, parts, window):
        keys, values = _rows(k, one.keys, heads), _rows(v, one.keys, heads)
        span = one.queries
        of_q, of_k, of_v = _BACKWARD(
            *(_batch(grad[span]), _batch(q[span]), keys, values, _batch(out[span]), lse[None, :, span].contiguous()),
            *(0.0, one.causal),
            attn_mask=one.mask,
            scale=scale,
        )
        dq[span] += of_q[0].transpose(0, 1)
        dk.index_add_(0, one.keys, home(of_k))
        dv.index_add_(0, one.keys, home(of_v))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _calls(q: Tensor, parts: list[Tensor], window: int) -> Iterator[_Part]:
    starts, keys_start, gathered = parts[0].tolist(), parts[1].tolist(), parts[2]
    for at, end, first, last in zip(starts, starts[1:], keys_start, keys_start[1:], strict=False):
        queries, keys = slice(at, end), gathered[first:last]
        before = last - first - (end - at)  # keys before the queries' own
        if 0 <= window < last - first or (before and q.dtype.itemsize < 4):
            yield _Part(queries, keys, False, _mask(end - at, before, window, q.dtype), True)
            continue
        yield _Part(queries, keys[before:], True, None, True)
        if before:
            yield _Part(queries, keys[:before], False, None, False)


def _mask(queries: int, before: int, window: int, dtype: torch.dtype) -> Tensor:
    query = torch.arange(queries)[:, None] + before
    key = torch.arange(queries + before)[None]
    hidden = key > query
    if window >= 0:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))[None, None]


def _rows(t: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """Returns ``[1, H, K, D]``: the rows of some tokens, a key's head repeated for each query's head."""
    rows = t.index_select(0, tokens)
    return _batch(rows if rows.shape[1] == heads else rows.repeat_interleave(heads // rows.shape[1], 1))


def _batch(t: Tensor) -> Tensor:
    return t.transpose(0, 1)[None]
