"""Binary classifier optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, labelled_of
from ._checks import check_positive
from ._rows import row_weights, weighted_total
from ._scored import log_sigmoid


class BCO(Loss):
    """Binary classifier optimisation: desirable rewards above, undesirable ones below their running mean.

    Formula: desirable ``-log sigmoid(r - delta)``, undesirable ``-log sigmoid(-(r - delta))``, r = beta (L - R),
    delta the mean of all rewards so far, those of this optimiser step included, without gradient.

    delta is state: it is kept in checkpoints and does not move in evaluation. The optional re-weighting by an
    underlying-distribution classifier of the paper is not here: give such weights as the column ``weight``.

    Args:
        beta: > 0.

    Raises:
        ValueError: an option is out of its range.

    Source: Jung et al. 2024, arXiv:2404.04656.
    Elsewhere: TRL ``BCOTrainer`` up to 1.10 (absent from 1.16).
    """

    needs = Needs(data="labelled", ref_logps=True, coupled="step", totals_from="scores", totals_in_evaluation=False)
    reward_sum: Tensor
    reward_count: Tensor

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.register_buffer("reward_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_count", torch.zeros((), dtype=torch.float64))

    @property
    def delta(self) -> Tensor:
        """The running mean of rewards, 0-dim float64, as the last optimiser step left it; 0 before any."""
        return self._mean(self.reward_sum, self.reward_count)

    def totals(self, batch: Batch) -> Totals:
        rewards = self.beta * labelled_of(batch).completions.log_ratios
        return {"reward_sum": weighted_total(rewards, batch), "reward_count": row_weights(batch, rewards).sum()}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        labelled = labelled_of(batch)
        rewards = self.beta * labelled.completions.log_ratios
        delta = self.delta
        if self.training:
            delta = self._mean(*self._moved(self.totals(batch) if totals is None else totals))
        shifted = rewards - delta.to(rewards)
        loss = -log_sigmoid(torch.where(labelled.desirable, shifted, -shifted))
        one = torch.ones((), device=loss.device)
        return LossOutput(loss, rewards=rewards.detach(), metrics={"delta": (delta.to(rewards), one)})

    def update(self, totals: Totals) -> None:
        self.reward_sum, self.reward_count = self._moved(totals)

    def _moved(self, totals: Totals) -> tuple[Tensor, Tensor]:
        return (
            self.reward_sum + totals["reward_sum"].to(self.reward_sum),
            self.reward_count + totals["reward_count"].to(self.reward_count),
        )

    @staticmethod
    def _mean(total: Tensor, count: Tensor) -> Tensor:
        return torch.where(count > 0, total / count.where(count > 0, 1.0), 0.0)
