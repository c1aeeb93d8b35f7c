"""Hybrid preference optimisation: a loss of pairs and a KL term on samples of the policy itself."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ._base import Batch, Facts, Loss, LossOutput, Metrics, Needs, Totals, bind, pairs_of
from ._checks import check_non_negative
from ._rows import row_metric
from .dpo import DPO


class HyPO(Loss):
    """Hybrid preference optimisation: any loss of pairs, and the KL to the reference on fresh samples of the policy.

    Formula: ``base + weight sg(L_on - R_on) L_on``, L_on and R_on of one sample a row, drawn from the policy in this
    step; sg stops the gradient.

    The second term has the gradient of KL(policy || reference) at the rows' prompts and a value without meaning:
    ``online/kl`` is the estimate of the KL, the mean of L_on - R_on. Offline pairs say nothing of answers that they do
    not cover, whose likelihood DPO may raise; the samples see them. A sample that is cut off before its end token has
    the KL of its first tokens only: ``online/finished`` says how many end, ``online_max_new_tokens`` how long they may
    be. Each step samples, and scores live under the reference: it costs a multiple of its base.

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        weight: lambda, of the KL term, >= 0.
        base: any loss of pairs.

    Raises:
        ValueError: the weight is out of its range, both beta and base are given, or the base reads no pairs.

    Source: Song et al. 2024, arXiv:2406.01462, algorithm 1 and eq. 6.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    Collision: Yuan et al. 2026 call another method HyPO, which is ``hybrid_dpo`` here.
    """

    def __init__(self, beta: float | None = None, weight: float = 0.01, base: Loss | None = None) -> None:
        super().__init__()
        if base is not None and beta is not None:
            raise ValueError("beta belongs to the base: give it there, or leave the base out")
        self.base = DPO(0.1 if beta is None else beta) if base is None else base
        self.weight = check_non_negative("weight", weight)
        self.stops_gradient = (*self.base.stops_gradient, "logps")
        self.needs = self._needs()

    def _needs(self) -> Needs:
        base, name = self.base.needs, type(self.base).__name__
        if base.data != "pairs" or base.values or base.online:
            raise ValueError(f"base: {name} is no loss of pairs of a language model alone")
        if base.kl or base.scorers or base.prompt_logps or base.second_moment:
            raise ValueError(f"base: {name} reads more of pairs than is measured of fresh samples beside them")
        return replace(base, ref_logps=True, online=True)

    def bind(self, facts: Facts) -> None:
        bind("base", self.base, facts)

    def totals(self, batch: Batch) -> Totals:
        return self.base.totals(batch)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        if pairs.online is None:
            raise ValueError("hypo needs fresh samples of the policy, and the batch has none")
        out: LossOutput = self.base(batch, totals)
        drift = pairs.online.log_ratios.detach()
        loss: Tensor = out.loss + self.weight * drift * pairs.online.sum_logps
        metrics: Metrics = {
            "online/kl": row_metric(drift, pairs),
            "online/tokens": row_metric(pairs.online.lengths, pairs),
            **out.metrics,
        }
        return LossOutput(loss, out.chosen_rewards, out.rejected_rewards, metrics=metrics)

    def update(self, totals: Totals) -> None:
        self.base.update(totals)
