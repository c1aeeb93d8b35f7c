"""Contrastive policy gradient."""

from __future__ import annotations

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._shift import column


class CoPG(Loss):
    """Contrastive policy gradient: learns from the rewards of two completions of a prompt, off-policy.

    Formula: ``-(dR h - 0.5 beta h^2)``, dR = score_chosen - score_rejected, h = a - b.

    This is ``(beta / 2) (h - dR / beta)^2`` less a constant, so dR = 1/2 is summed IPO up to scale. Exchanging the two
    completions changes nothing: the scores say which is better, by how much.

    Args:
        beta: > 0.

    Raises:
        ValueError: an option is out of its range, or the rows have no scores.

    Source: Flet-Berliac et al. 2024, arXiv:2406.19185.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    needs = Needs(ref_logps=True, columns=("score_chosen", "score_rejected"))

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        h = pairs.chosen.log_ratios - pairs.rejected.log_ratios
        gain = (column(pairs, "score_chosen") - column(pairs, "score_rejected")).to(h)
        return pair_output(pairs, -(gain * h - 0.5 * self.beta * h**2), self.beta)
