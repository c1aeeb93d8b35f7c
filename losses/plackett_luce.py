"""Direct preference optimisation of whole rankings."""

from __future__ import annotations

from typing import ClassVar

from ._base import Batch, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_positive
from ._lists import won_places


class PlackettLuce(Loss):
    """DPO of rankings: the likelihood of a list's order where each place is won against all that come after it.

    Formula: ``sum_k log sum_{j = k or j worse than k} exp(s_j - s_k)``, s = beta (L - R).

    Without ties this is minus the log-likelihood of the ranking under Plackett and Luce; with two completions it is
    DPO. A tie says nothing about the order of the tied: each of them is compared with itself and with what is scored
    strictly worse. So two tied before a third are two pairs of DPO, one before a tied rest is S-DPO's softmax, and a
    list of equal scores has the loss 0. A list of K has K - 1 comparisons, and its loss is their sum.

    Args:
        beta: strength of the pull to the reference, > 0.

    Raises:
        ValueError: an option is out of its range.

    Source: Rafailov et al. 2023, arXiv:2305.18290, appendix A.3, eq. 18 to 20; ties are not in it.
    Elsewhere: neither in TRL nor in LLaMA-Factory; LiPO's paper calls it DPO-PL and list-mle.
    """

    needs = Needs(data="lists", ref_logps=True)
    aliases: ClassVar = {"dpo_pl": {}}

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        s = self.beta * lists.completions.log_ratios
        return LossOutput(won_places(s, lists).sum(-1), rewards=s.detach())
