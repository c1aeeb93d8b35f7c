"""The plain causal sequences of a plan on a GPU: one varlen call of the flash attention that torch carries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The ops under torch's own attention. FlashAttention 3 and 4 register behind the same names; the public `varlen_attn`
# changes between versions, and its backward drops what a rescaled log-sum-exp needs.
_FORWARD = torch.ops.aten._flash_attention_forward
_BACKWARD = torch.ops.aten._flash_attention_backward


def forward(
    q: Tensor, k: Tensor, v: Tensor, parts: list[Tensor], longest: tuple[int, int], scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Returns the attention ``[T, H, D]`` of a row and its log-sum-exp ``[H, T]``, float32.

    The kernel aligns causal sequences, and windows, at their ends: a completion's queries see its whole prompt.

    Args:
        q: ``[T, H, D]``, float16 or bfloat16; ``k`` and ``v``: ``[T, G, D]``.
        parts: of the plan's table.
        longest: queries, and keys, of the longest sequences.
        window: positions that a query sees, itself included; below 0: all.
    """
    out, lse, *_ = _FORWARD(
        *(q, k.index_select(0, parts[2]), v.index_select(0, parts[2]), parts[0], parts[1], *longest),
        *(0.0, window < 0, False),
        **_options(scale, window),
    )
    return out, lse


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    parts: list[Tensor],
    longest: tuple[int, int],
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of ``q``, ``k`` and ``v``; those of a prompt's copies are summed in float32.

    Keys and values are gathered again: between forward and backward only the row's own are kept.
    """
    q, k, v, out, lse = saved
    starts, keys_start, gathered, own, copies = parts
    dropout_state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of no dropout
    dq, dk, dv = _BACKWARD(
        *(grad, q, k.index_select(0, gathered), v.index_select(0, gathered), out, lse, starts, keys_start, *longest),
        *(0.0, window < 0, dropout_state, q.new_empty(0)),
        **_options(scale, window),
    )
    back = gathered.index_select(0, copies)

    def home(gradient: Tensor) -> Tensor:
        total = gradient.index_select(0, own).float()
        return total.index_add_(0, back, gradient.index_select(0, copies).float()).to(gradient.dtype)

    return dq, home(dk), home(dv)


def _options(scale: float, window: int) -> dict[str, Any]:
    return {"scale": scale, "window_size_left": window - 1 if window >= 0 else -1, "window_size_right": 0}
