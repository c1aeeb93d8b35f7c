"""Multi pair-wise preference optimisation."""

from __future__ import annotations

from typing import Literal

from ._base import Batch, Loss, LossOutput, Needs, Totals, lists_of
from ._lists import best, better
from ._scored import log_sigmoid, where_mask


class MPPO(Loss):
    """MPPO: compares mean likelihoods of a list's completions, without a reference.

    Formula: mnm ``-log s(sum_l (p_w - p_l))``; mns ``-sum_l log s(p_w - p_l)``; mcm and mcs the same over all pairs of
    the list; s the sigmoid, p = exp(L / n), w the best completion and l all that are worse.

    p lies in (0, 1), and nothing scales it: one pair's loss is between 0.31 and 1.31. Tied completions are not
    compared; of several best ones each is compared with all that are worse.

    Args:
        variant: "mnm" or "mns", the best against the rest, merged or each by itself; "mcm" or "mcs", all pairs. The
            paper has the best results with "mnm".

    Source: Xie et al. 2024, arXiv:2412.15244, eq. 4 and 9 to 12.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    Collision: "MPO" is mixed preference optimisation, ``mpo``.
    """

    needs = Needs(data="lists")

    def __init__(self, variant: Literal["mnm", "mns", "mcm", "mcs"] = "mnm") -> None:
        super().__init__()
        self.variant = variant

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        p = lists.completions.mean_logps.exp()
        pairs = better(lists) if self.variant in ("mcm", "mcs") else better(lists) & best(lists)[:, :, None]
        gaps = p[:, :, None] - p[:, None, :]
        if self.variant in ("mnm", "mcm"):
            loss = -log_sigmoid(where_mask(gaps, pairs).sum((1, 2)))
        else:
            loss = where_mask(-log_sigmoid(gaps), pairs).sum((1, 2))
        return LossOutput(loss, rewards=p.detach())
