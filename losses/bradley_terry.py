"""The Bradley-Terry loss of a reward model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_interval, check_non_negative
from ._rows import row_metric
from ._scored import Scored, log_sigmoid
from ._shift import column


class BradleyTerry(Loss):
    """A reward model's loss: the chosen completion's reward is to exceed the rejected one's.

    Formula: ``-(1 - e) log sigmoid(d - margin) - e log sigmoid(-(d - margin)) + c (r_w + r_l)^2``, d = r_w - r_l the
    difference of the two rewards, e ``label_smoothing``, c ``centring``, margin 0 or a column of the rows.

    Only differences are learned without centring; with it rewards of pairs lie around 0. Rewards are those of a value
    head with one output, read at the last token of each completion. No reference is needed.

    ``calibration/brier`` is the mean of (1 - sigmoid(d))^2, 0.25 where the rewards say nothing; ``length/longer_wins``
    how often the longer completion has the higher reward, to be held against ``length/longer_chosen``, how often it is
    the chosen one. Pairs of equal length count for neither.

    Args:
        margin: whether rows carry a column ``margin``, by how much the chosen completion is better.
        centring: c, >= 0; 0.01 is what the papers and TRL suggest.
        label_smoothing: e, in [0, 0.5): the share of labels taken to be wrong.

    Raises:
        ValueError: an option is out of its range, or rows have no margin although it is asked for.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; Touvron et al. 2023 (Llama 2), arXiv:2307.09288, eq. 2, for
        the margin; Eisenstein et al. 2023, arXiv:2312.09244, section 2, for centring; Wang et al. 2024,
        arXiv:2401.06080, eq. 9, for smoothed labels.
    Elsewhere: TRL ``RewardTrainer`` (``center_rewards_coefficient``, a column ``margin`` where there is one);
        LLaMA-Factory ``stage: rm``.
    """

    def __init__(self, margin: bool = False, centring: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.margin = margin
        self.centring = check_non_negative("centring", centring)
        self.label_smoothing = check_interval("label_smoothing", label_smoothing, 0.0, 0.5)
        self.needs = Needs(logps=False, values=1)
        if margin:
            self.needs = replace(self.needs, columns=("margin",))

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        good, bad = reward_of(pairs.chosen), reward_of(pairs.rejected)
        gap = good - bad
        exceeded = gap - column(pairs, "margin").to(gap) if self.margin else gap
        smooth = self.label_smoothing
        loss = -(1 - smooth) * log_sigmoid(exceeded) - smooth * log_sigmoid(-exceeded)
        if self.centring:
            loss = loss + self.centring * (good + bad).square()
        longer = pairs.chosen.lengths - pairs.rejected.lengths
        unequal = longer != 0
        metrics = {
            "calibration/brier": row_metric((1 - gap.detach().sigmoid()).square(), pairs),
            "length/longer_wins": row_metric((longer * gap.detach() > 0).to(gap), pairs, unequal),
            "length/longer_chosen": row_metric((longer > 0).to(gap), pairs, unequal),
        }
        return LossOutput(loss, good.detach(), bad.detach(), metrics=metrics)


def reward_of(scored: Scored) -> Tensor:
    """Returns the one value of each completion ``[N]``, in float32 or better."""
    values = scored.require("values")
    if values.shape[-1] != 1:
        raise ValueError(f"bradley_terry reads one value a completion, found {values.shape[-1]}")
    return (values if values.dtype == torch.float64 else values.float())[:, 0]
