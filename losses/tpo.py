"""Triple preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative, check_positive
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from ._output import gold_of, mean_output, sum_output
from ._scored import log_sigmoid


class TPO(Loss):
    """Triple preference optimisation: a pair without a reference, and the likelihood of a third, gold completion.

    Formula: ``-log sigmoid(beta (L_w - L_l)) + alpha NLL(gold)``;
    TPO-L ``-log sigmoid(beta (Lbar_w - Lbar_l) - gamma) + alpha NLL(gold)``.

    The likelihood term is on the gold completion, never on the chosen one.

    Args:
        beta: > 0.
        alpha: weight of the likelihood term, >= 0.
        length_normalised: TPO-L, on mean log-probabilities.
        gamma: target margin of TPO-L, >= 0.
        nll_reduction: "token" over all tokens of the optimiser step, "example" or "sum".

    Raises:
        ValueError: an option is out of its range, or a row has no gold completion.

    Source: Saeidi et al. 2024, arXiv:2405.16681.
    Elsewhere: TRL ``TPOTrainer`` ``sigmoid`` and ``tpo-l``.
    Collision: "TPO" is triple preference optimisation here; tree and test-time preference optimisation are others.
    """

    aliases: ClassVar = {"tpo_l": {"length_normalised": True, "beta": 2.0}}

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 1.0,
        length_normalised: bool = False,
        gamma: float = 0.5,
        nll_reduction: Reduction = "token",
    ) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.alpha = check_non_negative("alpha", alpha)
        self.gamma = check_non_negative("gamma", gamma)
        self.length_normalised = length_normalised
        self.nll_reduction = nll_reduction
        self.needs = Needs(gold=True, coupled="step" if nll_reduction == "token" else "none")

    def totals(self, batch: Batch) -> Totals:
        return nll_totals(batch, gold_of(pairs_of(batch))) if self.nll_reduction == "token" else {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        gold = gold_of(pairs)
        totals = self.totals(batch) if totals is None else totals
        nll = self.alpha * nll_rows(gold, self.nll_reduction, totals)
        if self.length_normalised:
            z = self.beta * (pairs.chosen.mean_logps - pairs.rejected.mean_logps) - self.gamma
            out = mean_output(pairs, nll - log_sigmoid(z), self.beta)
        else:
            z = self.beta * (pairs.chosen.sum_logps - pairs.rejected.sum_logps)
            out = sum_output(pairs, nll - log_sigmoid(z), self.beta)
        out.metrics = nll_metric(batch, gold, self.nll_reduction)
        return out
