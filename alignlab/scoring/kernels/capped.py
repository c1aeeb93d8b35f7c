"""Attention over trees whose scores are soft-capped: FlexAttention from lengths alone on a GPU, dense elsewhere."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from alignlab.data import AttentionPlan

from .trees import prepared

BLOCK = 128  # queries, and keys, of a block that FlexAttention computes or skips
_NARROWEST = 16  # of a head, that FlexAttention takes


class Reach(NamedTuple):
    """What each query of a flat row sees: the keys from ``own`` to itself, and those from ``first`` until ``end``.

    Attributes:
        own: ``[T]`` int32, the oldest key seen in the query's own sequence of queries.
        first: ``[T]`` int32, the oldest key seen before that sequence, of the prompt that it shares.
        end: ``[T]`` int32, where those keys end; nothing is seen of them where it is not above ``first``.
    """

    own: Tensor
    first: Tensor
    end: Tensor

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Returns whether queries see keys, both of them positions in the row."""
        own = (key >= self.own[query]) & (key <= query)
        return own | ((key >= self.first[query]) & (key < self.end[query]))


def reach(plan: AttentionPlan, window: int | None) -> Reach:
    """Returns what each query sees, by a plan and a window of positions, itself included; nothing leaves the device.

    The keys of a sequence of queries that begins at s are those of the span [p, e) before it and its own. The key k
    of that span lies q - s + e - k positions before the query q.
    """
    starts, keys_start, gathered, *_ = plan.parts()
    before = keys_start.diff() - starts.diff()  # keys of each sequence that are not its queries' own
    first = gathered.index_select(0, keys_start[:-1])
    places = torch.arange(plan.tokens, device=starts.device, dtype=torch.int32)
    sequence = torch.searchsorted(starts[1:], places, right=True)
    own, first, before = (one.index_select(0, sequence) for one in (starts, first, before))
    end = first + before
    if window is not None:
        since = places - own
        own = torch.maximum(own, places - window + 1)
        first = torch.maximum(first, end + since - window + 1)
    return Reach(own, first, end)


def block_mask(plan: AttentionPlan, window: int | None = None) -> BlockMask:
    """Returns the blocks of a flat row that FlexAttention computes, exactly: those that hold a pair seen.

    No mask of the row's length squared is made: for a moment its 128th part in bytes, then the lists of blocks.
    """
    seen = reach(plan, window)
    tokens, device = plan.tokens, seen.own.device
    count = -(-tokens // BLOCK)
    left = torch.arange(0, count * BLOCK, BLOCK, device=device, dtype=torch.int32)
    right = left + (BLOCK - 1)
    own, first, end = (one[:, None] for one in seen)
    query = torch.arange(tokens, device=device, dtype=torch.int32)[:, None]
    touched = ((own <= right) & (left <= query)) | ((first <= right) & (left < end) & (first < end))
    filled = ((own <= left) & (right <= query)) | ((first <= left) & (right < end))
    ragged = (0, 0, 0, count * BLOCK - tokens)  # queries of the last block that do not exist see nothing
    touched, filled = (F.pad(one, ragged).view(count, BLOCK, count) for one in (touched, filled))
    full = filled.all(1)

    def lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
        order = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
        return blocks.sum(-1, dtype=torch.int32)[None, None], order[None, None]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen.sees(query, key)

    blocks = *lists(touched.any(1) & ~full), *lists(full)
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))


def capped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    cap: float,
    scale: float | None = None,
    window: int | None = None,
    blocks: BlockMask | None = None,
) -> Tensor:
    """Returns softmax(c tanh(scale q k^T / c)) v over what each token sees in its tree, ``[T, H, Dv]``.

    Flash attention as torch carries it has no such cap. On a GPU FlexAttention has, compiled for all lengths:
    no mask is made or kept. On a CPU it has no backward; scores are made whole there, for checks and short rows.
    Source of the cap: Gemma 2 (2024), section 2; of the kernel: FlexAttention (Dong et al. 2024).

    Args:
        q, k, v, plan, scale, window: as in ``tree_attention``.
        cap: c above.
        blocks: what ``block_mask`` returns for plan and window, where it is already made.

    Raises:
        UnsupportedAttention: as ``tree_attention`` does.
    """
    scale, values = q.shape[-1] ** -0.5 if scale is None else scale, v.shape[-1]
    q, k, v = (one.transpose(0, 1)[None] for one in prepared(q, k, v, plan, _NARROWEST))
    if q.device.type == "cuda":
        out = flex_capped(q, k, v, blocks or block_mask(plan, window), scale, cap)
    else:
        places = torch.arange(plan.tokens, device=q.device)
        out = dense_capped(q, k, v, reach(plan, window).sees(places[:, None], places), scale, cap)
    return out[0].transpose(0, 1)[..., :values]


def flex_capped(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, scale: float, cap: float) -> Tensor:
    """Returns soft-capped attention ``[1, H, T, D]`` by FlexAttention; forward alone on a CPU.

    Args:
        q: ``[1, H, T, D]``; ``k`` and ``v``: ``[1, G, T, D]``.
    """
    limit = torch.full((), cap, device=q.device)  # a number that changes, a twin's to the model's, does not compile

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    options: dict[str, Any] = {"score_mod": capped, "block_mask": blocks, "scale": scale, "enable_gqa": True}
    if q.device.type == "cuda":
        # Rows shorter than a block would otherwise go to a kernel for decoding, which has other limits.
        out: Tensor = _compiled()(q, k, v, **options, kernel_options={"BACKEND": "TRITON"})
        return out
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        out = flex_attention(q, k, v, **options)
    return out


@cache
def _compiled() -> Any:
    """Returns FlexAttention as one kernel, for rows of every length; inside compiled layers it is part of theirs."""
    return torch.compile(flex_attention, dynamic=True)


def dense_capped(q: Tensor, k: Tensor, v: Tensor, allow: Tensor, scale: float, cap: float) -> Tensor:
    """Returns soft-capped attention ``[R, H, Q, Dv]`` with all scores at once; softmax in float32 or better.

    Args:
        q: ``[R, H, Q, D]``; ``k``: ``[R, G, K, D]``; ``v``: ``[R, G, K, Dv]``, H a multiple of G.
        allow: who sees whom, bool, ``[Q, K]`` or ``[R, 1, Q, K]``; a query that sees nothing takes the mean of all.
    """
    k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~allow, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.to(v.dtype) @ v
