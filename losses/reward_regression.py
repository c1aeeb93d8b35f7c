"""Regression of a reward model's outputs on the ratings that rows carry."""

from __future__ import annotations

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_choice, check_count
from ._rows import row_metric
from ._scored import Scored


class RewardRegression(Loss):
    """A reward model with an output for each rating: every output is to say the rating that the row carries.

    Formula: ``mean over both completions and K outputs of (v_k - rating_k)^2``; with ``distance: huber`` of
    ``huber(v_k - rating_k)``, a half of the square below 1 and |x| - 1/2 above.

    The ratings are the columns ``rewards_chosen`` and ``rewards_rejected``, lists of K numbers or mappings from
    names to numbers. Rewards that are logged are the means of the outputs;
    ``regression/error`` is the mean absolute error.

    Args:
        outputs: K, how many ratings a completion has, >= 1.
        distance: "squared" or "huber".

    Raises:
        ValueError: an option is out of its range, or rows have other ratings than K.

    Source: Wang et al. 2024 (HelpSteer2), arXiv:2406.08673, section 4.1 (squared error of a linear head, an output for
        each attribute); Wang et al. 2024 (ArmoRM), arXiv:2406.12845, eq. 1.
    Elsewhere: NeMo-Aligner ``regression`` reward models; neither in TRL nor in LLaMA-Factory.
    """

    def __init__(self, outputs: int = 1, distance: str = "squared") -> None:
        super().__init__()
        self.outputs = check_count("outputs", outputs)
        self.distance = check_choice("distance", distance, ("squared", "huber"))
        self.needs = Needs(logps=False, values=outputs, rewards=outputs)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        good, bad = self._errors(pairs.chosen), self._errors(pairs.rejected)
        errors = torch.stack((good, bad))  # [2, N, K]
        if self.distance == "squared":
            distances = errors.square()
        else:
            distances = torch.nn.functional.huber_loss(errors, torch.zeros_like(errors), reduction="none")
        return LossOutput(
            distances.mean((0, 2)),
            _mean(pairs.chosen),
            _mean(pairs.rejected),
            metrics={"regression/error": row_metric(errors.abs().mean((0, 2)), pairs)},
        )

    def _errors(self, scored: Scored) -> torch.Tensor:
        """Returns by how much the outputs miss the ratings, ``[N, K]``, in float32 or better."""
        values, ratings = scored.require("values"), scored.require("rewards").detach()
        if values.shape != ratings.shape:
            found = f"{values.shape[-1]} outputs and {ratings.shape[-1]} ratings"
            raise ValueError(f"reward_regression reads a rating for each output, found {found}")
        return values - ratings if values.dtype == torch.float64 else values.float() - ratings.float()


def _mean(scored: Scored) -> torch.Tensor:
    values = scored.require("values").detach()
    return (values if values.dtype == torch.float64 else values.float()).mean(-1)
