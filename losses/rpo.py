"""DPO with a likelihood term on the chosen completion."""

from __future__ import annotations

from typing import ClassVar

from ._base import Batch, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from .dpo import DPO


class RPO(DPO):
    """DPO plus NLL: keeps the chosen completion likely while the margin grows.

    Formula: ``-log sigmoid(z) + alpha NLL_w``, z = beta * (a - b).

    Args:
        beta: > 0.
        alpha: weight of the likelihood term, >= 0.
        nll_reduction: "example" (the paper), "token" over all tokens of the optimiser step (TRL), or "sum".

    Raises:
        ValueError: an option is out of its range.

    Source: Pang et al. 2024, arXiv:2404.19733; Liu et al. 2024, arXiv:2405.16436, with alpha 0.005.
    Elsewhere: TRL ``[sigmoid, sft]`` with ``loss_weights [1, alpha]`` (token); LLaMA-Factory ``pref_ftx``.
    Collision: "RPO" is iterative reasoning preference optimisation here; NVIDIA's reward-aware RPO is another loss.
    """

    aliases: ClassVar = {"dpo_nll": {}}

    def __init__(self, beta: float = 0.1, alpha: float = 1.0, nll_reduction: Reduction = "example") -> None:
        super().__init__(beta)
        self.alpha = check_non_negative("alpha", alpha)
        self.nll_reduction = nll_reduction
        self.needs = Needs(ref_logps=True, coupled="step" if nll_reduction == "token" else "none")

    def totals(self, batch: Batch) -> Totals:
        return nll_totals(batch, pairs_of(batch).chosen) if self.nll_reduction == "token" else {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        chosen = pairs_of(batch).chosen
        totals = self.totals(batch) if totals is None else totals
        out = super().forward(batch)
        out.loss = out.loss + self.alpha * nll_rows(chosen, self.nll_reduction, totals)
        out.metrics = nll_metric(batch, chosen, self.nll_reduction)
        return out
