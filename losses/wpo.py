"""Weighted preference optimisation."""

from __future__ import annotations

from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._rows import row_metric
from ._scored import Scored, log_sigmoid, where_mask


class WPO(Loss):
    """Weighted preference optimisation: DPO, with pairs weighted by how likely the policy is to produce them.

    Formula: ``-sg(v_w v_l) log sigmoid(z)``, ``v = exp(mean_t [p_t - log sum_v pi(v)^2])``, z = beta * (a - b), sg
    without gradient.

    A weight may exceed 1; the official code clamps the product there, TRL does not.

    Args:
        beta: > 0.
        clamp: clamp the product of weights at 1.

    Raises:
        ValueError: an option is out of its range.

    Source: Zhou et al. 2024, arXiv:2406.11827, eq. 2.
    Elsewhere: TRL ``use_weighting`` (without the clamp).
    """

    needs = Needs(ref_logps=True, second_moment=True)
    stops_gradient = ("logps",)

    def __init__(self, beta: float = 0.01, clamp: bool = True) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.clamp = clamp

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        log_weight = _log_weight(pairs.chosen) + _log_weight(pairs.rejected)
        weight = log_weight.clamp(max=0.0).exp() if self.clamp else log_weight.exp()
        z = self.beta * (pairs.chosen.log_ratios - pairs.rejected.log_ratios)
        metrics = {"wpo/weight": row_metric(weight, batch)}
        return pair_output(pairs, -weight * log_sigmoid(z), self.beta, metrics)


def _log_weight(scored: Scored) -> Tensor:
    """Returns ``log v [N]``, detached."""
    moment = where_mask(scored.require("second_moment").detach(), scored.mask)
    return (where_mask(scored.logps.detach(), scored.mask) - moment).sum(-1) / scored.lengths
