"""Odds ratio preference optimisation: supervised learning with a penalty on the odds of the rejected completion."""

from __future__ import annotations

from typing import Literal

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from ._odds import log_odds
from ._output import mean_output
from ._rows import row_metric
from ._scored import log_sigmoid


class ORPO(Loss):
    """Odds ratio preference optimisation: likelihood of the chosen completion plus the odds ratio, no reference.

    Formula: ``NLL_w - beta * log sigmoid(lo(w) - lo(l))``, lo(y) = Lbar - log(1 - exp(Lbar)), Lbar = L / n.

    The odds are always those of the mean log-probability. The official code averages over one position too many
    (the first pad) and TRL's log(1 - exp(x)) has a NaN gradient above -3e-8; here neither happens.

    Args:
        beta: the paper's lambda, >= 0.
        nll_scope: tokens of the likelihood term: "completion" (the paper), or "full", prompt and chosen completion
            (the official code by default, and TRL).
        nll_reduction: "token" over all tokens of the optimiser step (the official code and TRL), "example" (mean per
            completion first) or "sum".

    Raises:
        ValueError: an option is out of its range.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    Elsewhere: TRL ``ORPOTrainer`` (``nll_scope: full``); LLaMA-Factory ``pref_loss: orpo`` (``completion``).
    """

    def __init__(
        self,
        beta: float = 0.1,
        nll_scope: Literal["completion", "full"] = "completion",
        nll_reduction: Reduction = "token",
    ) -> None:
        super().__init__()
        self.beta = check_non_negative("beta", beta)
        self.nll_reduction = nll_reduction
        self.prompt = nll_scope == "full"
        self.needs = Needs(prompt_logps=self.prompt, coupled="step" if nll_reduction == "token" else "none")

    def totals(self, batch: Batch) -> Totals:
        return nll_totals(batch, pairs_of(batch).chosen, self.prompt) if self.nll_reduction == "token" else {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        totals = self.totals(batch) if totals is None else totals
        odds = log_odds(pairs.chosen.mean_logps) - log_odds(pairs.rejected.mean_logps)
        nll = nll_rows(pairs.chosen, self.nll_reduction, totals, self.prompt)
        out = mean_output(pairs, nll - self.beta * log_sigmoid(odds), self.beta)
        out.metrics = nll_metric(batch, pairs.chosen, self.nll_reduction, self.prompt) | {
            "log_odds_chosen": row_metric(odds, batch),
            "log_odds_ratio": row_metric(log_sigmoid(odds), batch),
        }
        return out
