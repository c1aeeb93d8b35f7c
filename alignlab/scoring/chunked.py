"""Hidden states to per-token log-probabilities and KL, in row x vocabulary chunks that backward computes again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Sums, Upstream, chunks, gradients, score_rows
from .logits import Head, Side
from .wanted import Wanted

# From how many logits on chunks are no slower than the whole; the KL holds several times as much per logit.
WORTHWHILE, WORTHWHILE_KL = 2**23, 2**22


def worthwhile(positions: int, vocabulary: int, *, kl: bool = False) -> bool:
    """Returns whether so many logits are better made in chunks: below, the plain way is as fast and small anyway."""
    return positions * vocabulary >= (WORTHWHILE_KL if kl else WORTHWHILE)


def chunked_scores(hidden: Tensor, head: Head, wanted: Wanted) -> dict[str, Tensor]:
    """Scores positions from their hidden states without ever holding ``[M, V]``, backward included.

    ``logps = z_t - lse(z)``, ``kl = sum_v q_v (log q_v - log p_v)``, ``second_moment = log sum_v p_v^2`` with
    ``p = softmax(z)`` of the policy and ``q`` of the reference. With upstream gradients g1, g2, g3 of the three,
    backward makes each block of the logits again and uses
    ``dz = g1 onehot_t + (g2 - g1 - 2 g3) p - g2 q + 2 g3 p^2 / sum_v p_v^2``.

    Args:
        hidden: ``[M, D]``, the input of the policy's LM head.
        head: the policy's head. Its weight and bias get a gradient only if they require one.

    Returns:
        name -> ``[M]`` float32 (float64 for float64 input): "logps", and "kl" and "second_moment" if wanted. Under
        autocast the matmuls run in its dtype; sums of exponentials are float32 always. A target outside of the
        vocabulary gives NaN.

    Raises:
        ValueError: on shapes that do not fit, on different vocabularies.
    """
    target, reference = wanted.target, wanted.reference
    if hidden.dim() != 2 or target.shape != hidden.shape[:1]:
        raise ValueError(f"need hidden [M, D] and target [M], found {tuple(hidden.shape)} and {tuple(target.shape)}")
    other = None
    if reference is not None:
        if reference.hidden.shape[0] != hidden.shape[0] or reference.head.vocabulary != head.vocabulary:
            raise ValueError(
                f"policy and reference differ in shape: {hidden.shape[0]} and {reference.hidden.shape[0]} positions, "
                f"{head.vocabulary} and {reference.head.vocabulary} tokens"
            )
        other = reference.head.side(reference.hidden.detach())
    side = head.side(hidden)
    form = (side.scale, side.cap, side.dtype)
    wanted = wanted.on(head.blocks or hidden.device.type, head.vocabulary)
    values = _ChunkedScores.apply(  # type: ignore[no-untyped-call]
        hidden, side.weight, side.bias, form, other, wanted
    )
    return dict(zip(wanted.names, values, strict=True))


class _ChunkedScores(torch.autograd.Function):
    """Saves the hidden states, the weights and five numbers per row.

    The reference's tensors are constants, so they are kept on the context: tensors made in inference mode may not be
    saved the usual way. Its side is that of the forward: a backward may run outside of the forward's autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: tuple[float, float | None, torch.dtype],
        reference: Side | None,
        wanted: Wanted,
    ) -> tuple[Tensor, ...]:
        policy, positions = Side(hidden, weight, bias, *form), len(wanted.target)
        blocks = [score_rows(policy, reference, wanted, rows) for rows in chunks(positions, wanted.row_chunk)]
        values = tuple(torch.cat(column) for column in zip(*[values for values, _ in blocks], strict=True))
        sums = [
            None if column[0] is None else torch.cat(column) for column in zip(*[s for _, s in blocks], strict=True)
        ]
        ctx.save_for_backward(hidden, weight, bias, *sums)
        ctx.form, ctx.reference, ctx.wanted = form, reference, wanted
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *sums = ctx.saved_tensors
        policy = Side(hidden, weight, bias, *ctx.form)
        upstream = Upstream(**dict(zip(ctx.wanted.names, grads, strict=True)))
        needed = ctx.needs_input_grad[:3]
        return *gradients(policy, ctx.reference, ctx.wanted, Sums(*sums), upstream, needed), None, None, None
