"""Sequence likelihood calibration from human feedback."""

from __future__ import annotations

from typing import Literal

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative
from ._nll import Reduction, nll_metric, nll_rows, nll_totals
from ._output import gold_of, sum_output
from ._scored import Scored


class SLiCHF(Loss):
    """Sequence likelihood calibration: a hinge on the likelihoods themselves, and a likelihood term; no reference.

    Formula: ``max(0, delta - L_w + L_l) + nll_weight NLL(target)``.

    Args:
        delta: margin of log-probabilities that is asked for, >= 0.
        nll_weight: the paper's lambda, >= 0.
        target: completion of the likelihood term: "chosen", or "gold", the supervised target of the row.
        nll_reduction: "example" (mean per completion first), "token" over all tokens of the optimiser step, or "sum".

    Raises:
        ValueError: an option is out of its range.

    Source: Zhao et al. 2023, arXiv:2305.10425.
    Elsewhere: HALOs ``slic`` (its likelihood term raises a shape error); not in TRL or LLaMA-Factory.
    """

    def __init__(
        self,
        delta: float = 1.0,
        nll_weight: float = 0.1,
        target: Literal["chosen", "gold"] = "chosen",
        nll_reduction: Reduction = "example",
    ) -> None:
        super().__init__()
        self.delta = check_non_negative("delta", delta)
        self.nll_weight = check_non_negative("nll_weight", nll_weight)
        self.target = target
        self.nll_reduction = nll_reduction
        self.needs = Needs(gold=target == "gold", coupled="step" if nll_reduction == "token" else "none")

    def totals(self, batch: Batch) -> Totals:
        return nll_totals(batch, self._target(batch)) if self.nll_reduction == "token" else {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs, target = pairs_of(batch), self._target(batch)
        totals = self.totals(batch) if totals is None else totals
        hinge = torch.relu(self.delta - pairs.chosen.sum_logps + pairs.rejected.sum_logps)
        out = sum_output(pairs, hinge + self.nll_weight * nll_rows(target, self.nll_reduction, totals), 1.0)
        out.metrics = nll_metric(batch, target, self.nll_reduction)
        return out

    def _target(self, batch: Batch) -> Scored:
        pairs = pairs_of(batch)
        return pairs.chosen if self.target == "chosen" else gold_of(pairs)
