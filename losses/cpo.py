"""Contrastive preference optimisation."""

from __future__ import annotations

from torch import Tensor

from ._base import Batch, LossOutput, Needs, Pairs, Totals, pairs_of
from ._checks import check_non_negative
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from ._output import sum_output
from .dpo import DPO


class CPO(DPO):
    """Contrastive preference optimisation: DPO under a uniform reference, plus the likelihood of the chosen one.

    Formula: ``-log sigmoid(beta (L_w - L_l)) + alpha NLL_w``; label smoothing as in conservative DPO.

    Args:
        beta: > 0.
        alpha: weight of the likelihood term, >= 0.
        label_smoothing: assumed share of flipped labels, in [0, 0.5).
        nll_reduction: "token" over all tokens of the optimiser step (the official code and TRL), "example" or "sum".

    Raises:
        ValueError: an option is out of its range.

    Source: Xu et al. 2024, arXiv:2401.08417, eq. 3.
    Elsewhere: TRL ``CPOTrainer`` ``sigmoid`` (``cpo_alpha``); LLaMA-Factory has none.
    Collision: "CPO" is also comparative preference optimisation, which is another method.
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 1.0, label_smoothing: float = 0.0, nll_reduction: Reduction = "token"
    ) -> None:
        super().__init__(beta, label_smoothing)
        self.alpha = check_non_negative("alpha", alpha)
        self.nll_reduction = nll_reduction
        self.needs = Needs(coupled="step" if nll_reduction == "token" else "none")

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.chosen.sum_logps - pairs.rejected.sum_logps)

    def output(self, pairs: Pairs, loss: Tensor) -> LossOutput:
        return sum_output(pairs, loss, self.beta)

    def totals(self, batch: Batch) -> Totals:
        return nll_totals(batch, pairs_of(batch).chosen) if self.nll_reduction == "token" else {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        chosen = pairs_of(batch).chosen
        totals = self.totals(batch) if totals is None else totals
        out = super().forward(batch)
        out.loss = out.loss + self.alpha * nll_rows(chosen, self.nll_reduction, totals)
        out.metrics = nll_metric(batch, chosen, self.nll_reduction)
        return out
