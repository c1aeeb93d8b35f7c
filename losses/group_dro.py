"""Group distributionally robust optimisation."""

from __future__ import annotations

import warnings

from torch import Tensor

from ._base import Facts, Loss, Totals
from ._checks import check_interval
from .group_robust import GroupRobust
from .sft import SFT


class GroupDRO(GroupRobust):
    """Group DRO: supervised learning on the worst mixture of groups.

    Formula: ``sum_g alpha_g mean_g(loss)``, ``alpha <- softmax(log alpha + step_size (mean_g + C / sqrt(N_g)))``, then
    ``(1 - f) alpha + f N_g / N``.

    This is ``group_robust`` with group means over the likelihood of the chosen completions. The official code adds C to
    the very losses that are returned; here it moves the weights only. Its greedy variant is not here.

    It wants strong regularisation: a model that can fit every group has no worst one left to weigh, and was found no
    better than with plain training unless weight decay was large or training stopped early (the paper's section 3).

    Args:
        base: the loss of a row; mean NLL of the chosen completion where none is given.
        step_size: eta, >= 0.
        group_size_correction: C, >= 0.
        min_var_weight: f, in [0, 1): no group weighs less than this times its share of the data.

    Raises:
        ValueError: an option is out of its range, the base cannot be used, or rows have no groups.

    Source: Sagawa et al. 2020, arXiv:1911.08731, algorithm 1.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    def __init__(
        self,
        base: Loss | None = None,
        step_size: float = 0.01,
        group_size_correction: float = 0.0,
        min_var_weight: float = 0.0,
    ) -> None:
        super().__init__(
            SFT("example") if base is None else base,
            step_size,
            mode="batch_mean",
            group_size_correction=group_size_correction,
        )
        self.min_var_weight = check_interval("min_var_weight", min_var_weight, 0.0, 1.0)

    def bind(self, facts: Facts) -> None:
        super().bind(facts)
        if self.group_size_correction == 0:
            warnings.warn(
                "group_dro wants strong regularisation: without it a model fits every group, and the worst one gains "
                "nothing (Sagawa et al. 2020); give weight_decay, few steps, or group_size_correction",
                stacklevel=2,
            )

    def _moved(self, totals: Totals) -> Tensor:
        log_weights = super()._moved(totals)
        if self.min_var_weight == 0:
            return log_weights  # their exponential may be 0, from where no weight comes back
        weights, shares = log_weights.exp(), self.group_rows / self.group_rows.sum()
        return ((1 - self.min_var_weight) * weights + self.min_var_weight * shares).log()
