"""Noise contrastive alignment."""

from __future__ import annotations

from typing import ClassVar

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._scored import log_sigmoid


class NCA(Loss):
    """Noise contrastive alignment: raises the chosen reward itself, and not only above the rejected one.

    Formula: ``-log s(beta a) - 0.5 log s(-beta a) - 0.5 log s(-beta b)``, s the sigmoid.

    Its sibling InfoNCA is DPO on pairs.

    Args:
        beta: > 0.

    Source: Chen et al. 2024, arXiv:2402.05369.
    Elsewhere: TRL ``nca_pair``.
    """

    needs = Needs(ref_logps=True)
    aliases: ClassVar = {"nca_pair": {}}

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = self.beta * pairs.chosen.log_ratios, self.beta * pairs.rejected.log_ratios
        loss = -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)
        return pair_output(pairs, loss, self.beta)
