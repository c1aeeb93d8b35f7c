"""Scores and their gradients made from blocks of logits, each of which lives only for a moment."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .logits import Side, accumulation
from .wanted import Wanted


class Sums(NamedTuple):
    """What forward keeps of each row, ``[M]``: maxima, and sums of exponentials relative to them."""

    maximum: Tensor
    total: Tensor
    squares: Tensor | None
    ref_maximum: Tensor | None
    ref_total: Tensor | None


class Upstream(NamedTuple):
    """The gradients ``[M]`` that arrive for the values; None where none does."""

    logps: Tensor | None = None
    kl: Tensor | None = None
    second_moment: Tensor | None = None


class _LogSum:
    """The maximum and the sum of exponentials of rows that are seen block by block."""

    def __init__(self, like: Tensor) -> None:
        self.maximum = torch.full_like(like, -math.inf)
        self.total = torch.zeros_like(like)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Turns a block into exp(logits - maximum), in place; also returns what sums so far shrink by."""
        maximum = torch.maximum(self.maximum, logits.amax(1))
        shrink = (self.maximum - maximum).exp_()
        exponentials = logits.sub_(maximum[:, None]).exp_()
        self.maximum, self.total = maximum, self.total * shrink + exponentials.sum(1)
        return exponentials, shrink


def score_rows(policy: Side, reference: Side | None, wanted: Wanted, rows: slice) -> tuple[list[Tensor], Sums]:
    """Returns the values of some rows, from one pass over their blocks, and the sums that backward needs.

    ``reference`` is the side of ``wanted.reference``. The KL is ``E_q[z_ref - z] - lse(z_ref) + lse(z)``: exactly 0
    where both models give the same logits.
    """
    target = wanted.target[rows]
    like = policy.hidden.new_empty(len(target), dtype=accumulation(policy.dtype))
    own, other = _LogSum(like), _LogSum(like)
    chosen, gap, squares = torch.full_like(like, math.nan), torch.zeros_like(like), torch.zeros_like(like)
    for columns in chunks(policy.weight.shape[0], wanted.vocab_chunk):
        logits = policy.logits(rows, columns)
        inside, index = _inside(target, columns)
        chosen = torch.where(inside, logits.gather(1, index)[:, 0], chosen)
        if reference is not None:
            ref_logits = reference.logits(rows, columns)
            difference = ref_logits - logits
            exponentials, shrink = other.add(ref_logits)
            gap = gap * shrink + exponentials.mul_(difference).sum(1)
            del ref_logits, difference
        exponentials, shrink = own.add(logits)
        if wanted.second_moment:
            squares = squares * shrink.square() + exponentials.square_().sum(1)
        del logits, exponentials  # before the next block is made
    log_total = own.total.log()
    values = [(chosen - own.maximum) - log_total]
    if reference is not None:
        values.append(gap / other.total + (own.maximum - other.maximum) + (log_total - other.total.log()))
    if wanted.second_moment:
        values.append(squares.log() - 2 * log_total)
    return values, Sums(
        own.maximum,
        own.total,
        squares if wanted.second_moment else None,
        None if reference is None else other.maximum,
        None if reference is None else other.total,
    )


def gradients(
    policy: Side,
    reference: Side | None,
    wanted: Wanted,
    sums: Sums,
    upstream: Upstream,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of hidden states, weight and bias, as far as needed.

    All are summed in float32. Vocabulary goes outside and rows inside: so the weight's gradient needs a float32 sum
    of one block of the vocabulary only.
    """
    hidden, weight = policy.hidden, policy.weight
    wide = accumulation(policy.dtype)
    hidden_grad = torch.zeros_like(hidden, dtype=wide) if needed[0] else None
    weight_grad = torch.empty_like(weight) if needed[1] else None
    bias_grad = torch.empty_like(policy.bias) if needed[2] and policy.bias is not None else None
    for columns in chunks(weight.shape[0], wanted.vocab_chunk):
        block = weight[columns].to(policy.dtype)
        block_grad = torch.zeros_like(block, dtype=wide) if needed[1] else None
        block_bias = torch.zeros_like(block[:, 0], dtype=wide) if needed[2] else None
        for rows in chunks(len(wanted.target), wanted.row_chunk):
            gradient = _logit_gradient(policy, reference, wanted.target, sums, upstream, rows, columns)
            if block_bias is not None:
                block_bias += gradient.sum(0)
            gradient = gradient.to(policy.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] += gradient.mm(block)
            if block_grad is not None:
                block_grad += gradient.t().mm(hidden[rows].to(policy.dtype))
            del gradient
        if weight_grad is not None and block_grad is not None:
            weight_grad[columns] = block_grad
        if bias_grad is not None and block_bias is not None:
            bias_grad[columns] = block_bias
    return None if hidden_grad is None else hidden_grad.to(hidden.dtype), weight_grad, bias_grad


def _logit_gradient(
    policy: Side,
    reference: Side | None,
    target: Tensor,
    sums: Sums,
    upstream: Upstream,
    rows: slice,
    columns: slice,
) -> Tensor:
    """Returns the gradient of W h + b in a block; see ``chunked_scores`` for the formula."""
    logits = policy.logits(rows, columns)
    # d(cap tanh(u / cap)) / du = 1 - tanh^2
    slope = None if policy.cap is None else (logits / policy.cap).square_().neg_().add_(1)
    exponentials = logits.sub_(sums.maximum[rows, None]).exp_()
    g1, g2, g3 = (None if g is None else g[rows].to(exponentials.dtype) for g in upstream)
    share = torch.zeros_like(sums.total[rows])
    share = share if g2 is None else share + g2
    share = share if g1 is None else share - g1
    if g3 is None:
        gradient = exponentials.mul_((share / sums.total[rows])[:, None])
    else:
        assert sums.squares is not None
        squares = exponentials.square().mul_((2 * g3 / sums.squares[rows])[:, None])
        gradient = exponentials.mul_(((share - 2 * g3) / sums.total[rows])[:, None]).add_(squares)
    if g2 is not None:
        assert reference is not None
        assert sums.ref_maximum is not None
        assert sums.ref_total is not None
        ref = reference.logits(rows, columns).sub_(sums.ref_maximum[rows, None]).exp_()
        gradient.sub_(ref.mul_((g2 / sums.ref_total[rows])[:, None]))
    if g1 is not None:
        inside, index = _inside(target[rows], columns)
        gradient.scatter_add_(1, index, torch.where(inside, g1, 0)[:, None])
    if slope is not None:
        gradient.mul_(slope)
    return gradient if policy.scale == 1.0 else gradient.mul_(policy.scale)


def _inside(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Returns which targets ``[M]`` lie in a block, and their column in it ``[M, 1]`` (any column for the others)."""
    inside = (target >= columns.start) & (target < columns.stop)
    return inside, (target - columns.start).clamp(0, columns.stop - columns.start - 1)[:, None]


def chunks(total: int, size: int) -> list[slice]:
    """Returns the slices of a range; one empty slice if it is empty."""
    return [slice(start, min(start + size, total)) for start in range(0, max(total, 1), size)]
