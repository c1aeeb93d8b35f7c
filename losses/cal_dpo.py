"""Calibrated direct preference optimisation."""

from __future__ import annotations

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative, check_positive
from ._output import pair_output
from ._rows import row_metric
from ._scored import log_sigmoid


class CalDPO(Loss):
    """Calibrated DPO: the logistic loss of log-ratios, and a pull of each to its share of the reward.

    Formula: ``-log sigmoid(a - b) + calibration [(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2]``.

    There is no beta in the logistic term. At policy == reference the loss is ``log 2 + calibration / (2 beta^2)``,
    5e5 at the defaults. The official code averages the calibration over the batch first; the mean over rows and the
    gradient are the same.

    Args:
        beta: > 0.
        calibration: weight c, >= 0: 1 in the paper, 0.5 in the official code.

    Raises:
        ValueError: an option is out of its range.

    Source: Xiao et al. 2024, arXiv:2412.14516.
    Elsewhere: neither in TRL nor in LLaMA-Factory; turbo-alignment ``cal_dpo``.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 1e-3, calibration: float = 1.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.calibration = check_non_negative("calibration", calibration)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        target = 1 / (2 * self.beta)
        distance = (a - target) ** 2 + (b + target) ** 2
        loss = -log_sigmoid(a - b) + self.calibration * distance
        return pair_output(pairs, loss, self.beta, {"cal_dpo/distance": row_metric(distance, batch)})
