"""Hidden states to per-token log-probabilities and KL, in row x vocabulary chunks that backward computes again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROW_CHUNK, VOCAB_CHUNK = 1024, 2048  # 8 MiB of fp32 logits: the fastest of those measured (docs/chunked-head.md)
# From how many logits on chunks are no slower than the whole; the KL holds several times as much per logit.
WORTHWHILE, WORTHWHILE_KL = 2**23, 2**22


@dataclass(frozen=True)
class Head:
    """An LM head: logits = cap * tanh(scale * (W h + b) / cap), without the soft-cap if ``cap`` is None.

    The module is kept, not its weight ``[V, D]``, which under ZeRO-3 is there only inside the module's forward.
    """

    module: nn.Linear
    scale: float = 1.0
    cap: float | None = None
    tied: bool = False

    @property
    def vocabulary(self) -> int:
        """The number of logits, V."""
        return self.module.out_features

    def post_process(self, raw: Tensor) -> Tensor:
        """Turns W h + b into logits, in place."""
        return _post_processed(raw, self.scale, self.cap)

    def side(self, hidden: Tensor) -> _Side:
        """Returns the head with its weights as they are now, over hidden states ``[M, D]``.

        Raises ValueError where the weight is not whole here.
        """
        weight, bias = self.module.weight, self.module.bias
        if weight.shape != (self.module.out_features, self.module.in_features):
            raise ValueError(
                f"the LM head's weight has the shape {tuple(weight.shape)} here, not "
                f"{(self.module.out_features, self.module.in_features)}: it is sharded, and gathered only in the "
                "forward of its model (score_positions)"
            )
        return _Side(hidden, weight, bias, self.scale, self.cap, _compute_dtype(weight))


class _Side(NamedTuple):
    """Hidden states and the head over them, from which any block of the logits can be made."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None
    dtype: torch.dtype  # of the matmul

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Returns a new tensor with this block of the logits, in float32 (float64 stays)."""
        hidden, weight = self.hidden[rows].to(self.dtype), self.weight[columns].to(self.dtype)
        if self.bias is None:
            raw = hidden.mm(weight.t())
        else:
            raw = torch.addmm(self.bias[columns].to(self.dtype), hidden, weight.t())
        return _post_processed(_wide(raw), self.scale, self.cap)


def _post_processed(raw: Tensor, scale: float, cap: float | None) -> Tensor:
    if scale != 1.0:
        raw.mul_(scale)
    return raw if cap is None else raw.div_(cap).tanh_().mul_(cap)


def worthwhile(positions: int, vocabulary: int, *, kl: bool = False) -> bool:
    """Returns whether so many logits are better made in chunks: below, the plain way is as fast and small anyway."""
    return positions * vocabulary >= (WORTHWHILE_KL if kl else WORTHWHILE)


def chunked_scores(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    *,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    want_kl: bool = False,
    want_second_moment: bool = False,
    row_chunk: int = ROW_CHUNK,
    vocab_chunk: int = VOCAB_CHUNK,
) -> dict[str, Tensor]:
    """Scores positions from their hidden states without ever holding ``[M, V]``, backward included.

    ``logps = z_t - lse(z)``, ``kl = sum_v q_v (log q_v - log p_v)``, ``second_moment = log sum_v p_v^2`` with
    ``p = softmax(z)`` of the policy and ``q`` of the reference. With upstream gradients g1, g2, g3 of the three,
    backward makes each block of the logits again and uses
    ``dz = g1 onehot_t + (g2 - g1 - 2 g3) p - g2 q + 2 g3 p^2 / sum_v p_v^2``.

    Args:
        hidden: ``[M, D]``, the input of the policy's LM head. target: ``[M]`` int64 token ids.
        head: the policy's head. Its weight and bias get a gradient only if they require one.
        ref_hidden: ``[M, D_ref]`` of the reference, taken as a constant, and ``ref_head`` over it: for "kl".
        row_chunk, vocab_chunk: shape of a block.

    Returns:
        name -> ``[M]`` float32 (float64 for float64 input): "logps", and "kl" and "second_moment" if wanted. Under
        autocast the matmuls run in its dtype; sums of exponentials are float32 always. A target outside of the
        vocabulary gives NaN.

    Raises:
        ValueError: on shapes that do not fit, on a KL without a reference, on different vocabularies.
    """
    if hidden.dim() != 2 or target.shape != hidden.shape[:1]:
        raise ValueError(f"need hidden [M, D] and target [M], found {tuple(hidden.shape)} and {tuple(target.shape)}")
    reference = None
    if want_kl:
        if ref_hidden is None or ref_head is None:
            raise ValueError("want_kl needs ref_hidden and ref_head")
        if ref_hidden.shape[0] != hidden.shape[0] or ref_head.vocabulary != head.vocabulary:
            raise ValueError(
                f"policy and reference differ in shape: {hidden.shape[0]} and {ref_hidden.shape[0]} positions, "
                f"{head.vocabulary} and {ref_head.vocabulary} tokens"
            )
        reference = ref_head.side(ref_hidden.detach())
    side = head.side(hidden)
    plan = _Plan(row_chunk, vocab_chunk, want_second_moment)
    form = (side.scale, side.cap, side.dtype)
    values = _ChunkedScores.apply(  # type: ignore[no-untyped-call]
        hidden, side.weight, side.bias, target, reference, form, plan
    )
    names = ["logps"] + ["kl"] * want_kl + ["second_moment"] * want_second_moment
    return dict(zip(names, values, strict=True))


class _Plan(NamedTuple):
    row_chunk: int
    vocab_chunk: int
    second_moment: bool


class _Sums(NamedTuple):
    """What forward keeps of each row, ``[M]``: maxima, and sums of exponentials relative to them."""

    maximum: Tensor
    total: Tensor
    squares: Tensor | None
    ref_maximum: Tensor | None
    ref_total: Tensor | None


class _ChunkedScores(torch.autograd.Function):
    """Saves the hidden states, the weights and five numbers per row.

    The reference's tensors are constants, so they are kept on the context: tensors made in inference mode may not be
    saved the usual way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        reference: _Side | None,
        form: tuple[float, float | None, torch.dtype],
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        policy = _Side(hidden, weight, bias, *form)
        blocks = [_score_rows(policy, reference, target, rows, plan) for rows in _chunks(len(target), plan.row_chunk)]
        values = tuple(torch.cat(column) for column in zip(*[values for values, _ in blocks], strict=True))
        sums = [
            None if column[0] is None else torch.cat(column) for column in zip(*[s for _, s in blocks], strict=True)
        ]
        ctx.save_for_backward(hidden, weight, bias, target, *sums)
        ctx.reference, ctx.form, ctx.plan = reference, form, plan
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, *sums = ctx.saved_tensors
        policy, reference, left = _Side(hidden, weight, bias, *ctx.form), ctx.reference, list(grads)
        upstream = _Upstream(
            left.pop(0),
            left.pop(0) if reference is not None else None,
            left.pop(0) if ctx.plan.second_moment else None,
        )
        wanted = ctx.needs_input_grad[:3]
        return *_gradients(policy, reference, target, _Sums(*sums), upstream, wanted, ctx.plan), None, None, None, None


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


def _score_rows(
    policy: _Side, reference: _Side | None, target: Tensor, rows: slice, plan: _Plan
) -> tuple[list[Tensor], _Sums]:
    """Returns the values of some rows, from one pass over their blocks, and the sums that backward needs.

    The KL is ``E_q[z_ref - z] - lse(z_ref) + lse(z)``: exactly 0 where both models give the same logits.
    """
    like = policy.hidden.new_empty(len(target[rows]), dtype=_accumulation(policy.dtype))
    own, other = _LogSum(like), _LogSum(like)
    chosen, gap, squares = torch.full_like(like, math.nan), torch.zeros_like(like), torch.zeros_like(like)
    for columns in _chunks(policy.weight.shape[0], plan.vocab_chunk):
        logits = policy.logits(rows, columns)
        inside, index = _inside(target[rows], columns)
        chosen = torch.where(inside, logits.gather(1, index)[:, 0], chosen)
        if reference is not None:
            ref_logits = reference.logits(rows, columns)
            difference = ref_logits - logits
            exponentials, shrink = other.add(ref_logits)
            gap = gap * shrink + exponentials.mul_(difference).sum(1)
            del ref_logits, difference
        exponentials, shrink = own.add(logits)
        if plan.second_moment:
            squares = squares * shrink.square() + exponentials.square_().sum(1)
        del logits, exponentials  # before the next block is made
    log_total = own.total.log()
    values = [(chosen - own.maximum) - log_total]
    if reference is not None:
        values.append(gap / other.total + (own.maximum - other.maximum) + (log_total - other.total.log()))
    if plan.second_moment:
        values.append(squares.log() - 2 * log_total)
    return values, _Sums(
        own.maximum,
        own.total,
        squares if plan.second_moment else None,
        None if reference is None else other.maximum,
        None if reference is None else other.total,
    )


class _Upstream(NamedTuple):
    """The gradients ``[M]`` that arrive for the values; None where none does."""

    logps: Tensor | None
    kl: Tensor | None
    second_moment: Tensor | None


def _gradients(
    policy: _Side,
    reference: _Side | None,
    target: Tensor,
    sums: _Sums,
    upstream: _Upstream,
    wanted: tuple[bool, bool, bool],
    plan: _Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of hidden states, weight and bias, as far as wanted.

    All are summed in float32. Vocabulary goes outside and rows inside: so the weight's gradient needs a float32 sum
    of one block of the vocabulary only.
    """
    hidden, weight = policy.hidden, policy.weight
    wide = _accumulation(policy.dtype)
    hidden_grad = torch.zeros_like(hidden, dtype=wide) if wanted[0] else None
    weight_grad = torch.empty_like(weight) if wanted[1] else None
    bias_grad = torch.empty_like(policy.bias) if wanted[2] and policy.bias is not None else None
    for columns in _chunks(weight.shape[0], plan.vocab_chunk):
        block = weight[columns].to(policy.dtype)
        block_grad = torch.zeros_like(block, dtype=wide) if wanted[1] else None
        block_bias = torch.zeros_like(block[:, 0], dtype=wide) if wanted[2] else None
        for rows in _chunks(len(target), plan.row_chunk):
            gradient = _logit_gradient(policy, reference, target, sums, upstream, rows, columns)
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
    policy: _Side,
    reference: _Side | None,
    target: Tensor,
    sums: _Sums,
    upstream: _Upstream,
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


def _chunks(total: int, size: int) -> list[slice]:
    """Returns the slices of a range; one empty slice if it is empty."""
    return [slice(start, min(start + size, total)) for start in range(0, max(total, 1), size)]


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype that a matmul with this weight runs in; autocast leaves float64 alone."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide(values: Tensor) -> Tensor:
    return values.to(_accumulation(values.dtype))
