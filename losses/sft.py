"""Supervised fine-tuning on the preferred completions."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ._base import Batch, Labelled, Loss, LossOutput, Needs, Totals, pairs_of
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from ._scored import Scored


class SFT(Loss):
    """Supervised fine-tuning: the negative log-likelihood of chosen, or of desirable, completions.

    Formula: token ``-sum_i L_i / sum_i n_i``; example ``mean_i(-L_i / n_i)``; sum ``mean_i(-L_i)``;
    all over the rows of the optimiser step.

    Undesirable rows add nothing and do not count.

    Args:
        reduction: how tokens and rows are averaged.
        data: "pairs" learns the chosen completions, "labelled" the desirable ones.

    Source: maximum likelihood.
    Elsewhere: TRL ``sft`` (token); TRL ``SFTTrainer``.
    """

    aliases: ClassVar = {"nll": {}}

    def __init__(self, reduction: Reduction = "token", data: Literal["pairs", "labelled"] = "pairs") -> None:
        super().__init__()
        self.reduction = reduction
        coupled = reduction == "token" or data == "labelled"
        self.needs = Needs(data=data, rejected=data != "pairs", coupled="step" if coupled else "none")

    def totals(self, batch: Batch) -> Totals:
        if self.needs.coupled == "none":
            return {}
        scored, where = _learned(batch)
        return nll_totals(batch, scored, where=where)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        scored, where = _learned(batch)
        totals = self.totals(batch) if totals is None else totals
        loss = nll_rows(scored, self.reduction, totals, where=where)
        return LossOutput(loss, metrics=nll_metric(batch, scored, self.reduction, where=where))


def _learned(batch: Batch) -> tuple[Scored, Tensor | None]:
    """Returns the completions to learn and, where not all are, which rows."""
    if isinstance(batch, Labelled):
        return batch.completions, batch.desirable
    return pairs_of(batch).chosen, None
