"""Attention over the trees of a flat row: what it takes, what it refuses by name, and the call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.data import AttentionPlan

from .ops import tree_forward

WIDEST = 256  # of a head, on a GPU
_HALF = (torch.float16, torch.bfloat16)


class UnsupportedAttention(ValueError):
    """Attention over trees cannot be done so; the reason is in the message."""


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Returns softmax(scale q k^T) v over what each token sees in its tree, ``[T, H, Dv]``.

    A token sees its prompt and its own completion up to itself, as far back as ``window`` reaches in positions;
    chunks are in the plan. No mask is made or kept: per layer the row's queries, keys, values, output and
    log-sum-exp are saved for backward. Source of the kernels: FlashAttention-2 (Dao 2023); of the sinks: gpt-oss.

    Args:
        q: ``[T, H, D]``; ``k``: ``[T, G, D]``; ``v``: ``[T, G, Dv]``, H a multiple of G, Dv at most D. Under autocast
            they become its dtype, as they do in torch's own attention. On a GPU float16 or bfloat16.
        scale: 1 / sqrt(D) where None.
        window: positions that a query sees, itself included.
        sinks: ``[H]``, one more logit for each head (gpt-oss).

    Raises:
        UnsupportedAttention: dtypes, heads, widths or a plan that the kernels would take and get wrong.
    """
    scale, values = q.shape[-1] ** -0.5 if scale is None else scale, v.shape[-1]
    q, k, v = prepared(q, k, v, plan)
    if sinks is not None and sinks.shape != (q.shape[1],):
        raise UnsupportedAttention(f"attention sinks {tuple(sinks.shape)} for {q.shape[1]} heads")
    out: Tensor = tree_forward(
        q.contiguous(), k, v, sinks, plan.table, list(plan[1:]), float(scale), -1 if window is None else window
    )[0]
    return out[..., :values] if values < out.shape[-1] else out


def prepared(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, narrowest: int = 0) -> list[Tensor]:
    """Returns queries, keys and values of one dtype and width, checked; ``narrowest``: width to pad to on a GPU.

    Raises:
        UnsupportedAttention: as ``tree_attention`` does.
    """
    device = q.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        q, k, v = q.to(kind), k.to(kind), v.to(kind)
    _check(q, k, v, plan)
    # Kernels want values as wide as keys, and on a GPU widths in eights: zeros change nothing.
    width = q.shape[-1] if device == "cpu" else max(-(-q.shape[-1] // 8) * 8, narrowest)
    return [F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (q, k, v)]


def _check(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> None:
    """Refuses what the kernels do not check, or check only by a fault on the device."""
    tokens, heads, width = q.shape
    shapes = f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}"
    if not (k.shape[0] == v.shape[0] == tokens and k.shape[1] == v.shape[1] and k.shape[2] == width >= v.shape[2]):
        raise UnsupportedAttention(f"attention over trees of {shapes}: one row, as many keys as values, none wider")
    if heads % k.shape[1]:
        raise UnsupportedAttention(f"attention of {heads} heads over {k.shape[1]} of keys: not a multiple")
    if not q.dtype == k.dtype == v.dtype:
        raise UnsupportedAttention(f"attention of {q.dtype} queries, {k.dtype} keys and {v.dtype} values")
    if plan.table.dtype != torch.int32 or plan.table.device != q.device:
        raise UnsupportedAttention(f"a plan of {plan.table.dtype} on {plan.table.device}: int32 on {q.device} is taken")
    if plan.tokens != tokens:
        raise UnsupportedAttention(f"a plan of {plan.tokens} tokens for a row of {tokens}")
    if q.device.type != "cpu":
        if q.dtype not in _HALF:
            raise UnsupportedAttention(f"attention in {q.dtype} on a GPU: float16 and bfloat16 are taken")
        if width > WIDEST:
            raise UnsupportedAttention(f"attention with heads {width} wide: at most {WIDEST} on a GPU")
