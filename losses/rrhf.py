"""Ranking of responses by their mean log-probability, beside likelihood of the best."""

from __future__ import annotations

from typing import Literal

from ._base import Batch, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_non_negative, check_positive
from ._lists import best_nll, better
from ._scored import where_mask


class RRHF(Loss):
    """RRHF: whatever is worse must not be likelier, token by token, than what is better; the best one is learned.

    Formula: ``rank_weight sum_{j worse than i} max(0, p_j - p_i) + nll_weight NLL(best)``, p = L / n.

    There is no margin: a list in the right order has the likelihood term alone, and without that term nothing holds
    the likelihoods up. Tied completions are not compared; of several best ones the mean is learned.

    Args:
        rank_weight: > 0; 1 in the paper, which found 10 and 100 worse, and 100 by default in its code.
        nll_weight: >= 0.
        nll_reduction: "sum" is -L, as in the paper; "example" is -L / n. Its code takes the mean over the batch's
            positions, padding included.

    Raises:
        ValueError: an option is out of its range.

    Source: Yuan et al. 2023, arXiv:2304.05302, eq. 1 to 5.
    Elsewhere: neither in TRL nor in LLaMA-Factory; GanjinZero/RRHF (``rrhf_weight``).
    """

    needs = Needs(data="lists")

    def __init__(
        self,
        rank_weight: float = 1.0,
        nll_weight: float = 1.0,
        nll_reduction: Literal["sum", "example"] = "sum",
    ) -> None:
        super().__init__()
        self.rank_weight = check_positive("rank_weight", rank_weight)
        self.nll_weight = check_non_negative("nll_weight", nll_weight)
        self.nll_reduction = nll_reduction

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        p = lists.completions.mean_logps
        wrong = where_mask((p[:, None, :] - p[:, :, None]).relu(), better(lists)).sum((1, 2))
        loss = self.rank_weight * wrong + self.nll_weight * best_nll(lists, self.nll_reduction)
        return LossOutput(loss, rewards=p.detach())
