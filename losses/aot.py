"""Alignment via optimal transport."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Pairs, Totals, pairs_of
from ._checks import check_interval, check_positive
from ._output import pair_output
from ._rows import row_weights
from ._scored import log_sigmoid


class AOT(Loss):
    """Alignment via optimal transport: compares the sorted rewards of a micro-batch instead of single pairs.

    Formula: ``-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)``; paired d = sort(L_w - L_l) - sort(R_w - R_l);
    unpaired d = sort(a) - sort(b).

    The rows of one rank's micro-batch are sorted, so the result depends on its size; with one row it is DPO. The
    losses are those of the places in the sorted order and belong to no single pair, so rows weigh 0 or 1 only.

    Args:
        beta: > 0.
        paired: sort margins, or both sides by themselves.
        label_smoothing: e, in [0, 0.5).

    Raises:
        ValueError: an option is out of its range, or rows are weighted.

    Source: Melnyk et al. 2024, arXiv:2406.05882.
    Elsewhere: TRL ``aot`` and ``aot_unpaired`` (old TRL called the latter ``aot_pair``).
    """

    needs = Needs(ref_logps=True, coupled="micro_batch")
    aliases: ClassVar = {"aot_unpaired": {"paired": False}}

    def __init__(self, beta: float = 0.01, paired: bool = True, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.paired = paired
        self.label_smoothing = check_interval("label_smoothing", label_smoothing, 0.0, 0.5)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        rows = _counted(pairs)
        upper, lower = self._sides(pairs)
        z = self.beta * (upper[rows].sort().values - lower[rows].sort().values)
        e = self.label_smoothing
        loss = -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)
        return pair_output(pairs, torch.zeros_like(upper).index_put((rows,), loss), self.beta)

    def _sides(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.paired:
            return chosen.sum_logps - rejected.sum_logps, chosen.sum_ref_logps - rejected.sum_ref_logps
        return chosen.log_ratios, rejected.log_ratios


def _counted(pairs: Pairs) -> Tensor:
    """Returns the indices of the rows whose weight is not 0."""
    weights = row_weights(pairs, pairs.chosen.logps.float())
    if not bool(torch.all((weights == 0) | (weights == 1))):
        raise ValueError("aot sorts rows over the micro-batch, so they cannot be weighted; drop the column 'weight'")
    return weights.nonzero()[:, 0]
