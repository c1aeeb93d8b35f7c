"""Listwise preference optimisation with the weights of LambdaLoss."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ._base import Batch, Facts, Listed, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_positive, check_range
from ._lists import better
from ._scored import log_sigmoid, where_mask


class LiPOLambda(Loss):
    """LiPO-lambda: DPO of all pairs of a list, each by how much its exchange would change the list's DCG.

    Formula: ``-sum_{psi_i > psi_j} D_ij log sigmoid(s_i - s_j)``, s = beta (L - R),
    ``D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + t_i) - 1 / log(1 + t_j)|`` without gradient, t the rank under s, 1 the
    highest.

    The logarithm is the natural one: with two completions the loss is DPO's times 0.5325 |2^psi_i - 2^psi_j|. Where
    policy equals reference all s are equal and the formula leaves the ranks open; equal s are ranked by their labels
    here, the better first, and completions equal in both share the mean of their 1 / log(1 + t). (Mean ranks alone
    would make every weight 0, and the first step none.)

    Args:
        beta: strength of the pull to the reference, > 0.
        labels: what psi is. "scores" are taken as they are, and must lie in [0, 1], as the paper has them. "ranks" are
            the share of a list's completions that each one beats, as the paper takes rankings without scores.

    Raises:
        ValueError: an option is out of its range, or scores taken as labels are not in [0, 1].

    Source: Liu et al. 2024, arXiv:2402.01878, eq. 8, with gain and discount as in section 3 and beta as in section 5.
    Elsewhere: neither in TRL nor in LLaMA-Factory; the paper used RAX in JAX.
    """

    needs = Needs(data="lists", ref_logps=True)
    aliases: ClassVar = {"lipo": {}}

    def __init__(self, beta: float = 0.05, labels: Literal["scores", "ranks"] = "scores") -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.labels = labels

    def bind(self, facts: Facts) -> None:
        if self.labels == "scores":
            check_range(facts, "scores", 0, 1, "lipo_lambda reads them as labels; scale them, or write labels: ranks")

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        s = self.beta * lists.completions.log_ratios
        psi = self._psi(lists, s)
        discounts = _discounts(s.detach(), psi, lists.present)
        gains = 2**psi
        weights = (gains[:, :, None] - gains[:, None, :]).abs() * (discounts[:, :, None] - discounts[:, None, :]).abs()
        terms = -weights * log_sigmoid(s[:, :, None] - s[:, None, :])
        return LossOutput(where_mask(terms, better(lists)).sum((1, 2)), rewards=s.detach())

    def _psi(self, lists: Listed, like: Tensor) -> Tensor:
        """Returns the labels ``[N, K]`` in [0, 1], in the dtype of ``like``; 0 at holes."""
        if self.labels == "ranks":
            return better(lists).sum(-1).to(like) / lists.present.sum(-1, keepdim=True)
        psi = where_mask(lists.scores.detach(), lists.present)
        if not bool(torch.all((psi >= 0) & (psi <= 1))):
            raise ValueError(
                f"lipo_lambda reads scores as labels in [0, 1], found {psi.min():g} to {psi.max():g}: scale them, or"
                " write labels: ranks"
            )
        return psi.to(like)


def _discounts(s: Tensor, psi: Tensor, present: Tensor) -> Tensor:
    """Returns 1 / log(1 + rank) of each completion, ``[N, K]``; the mean of the ranks' that equal ones share."""
    both = present[:, :, None] & present[:, None, :]
    equal = s[:, :, None] == s[:, None, :]
    ahead = ((s[:, None, :] > s[:, :, None]) | (equal & (psi[:, None, :] > psi[:, :, None]))) & both
    shared = (equal & (psi[:, None, :] == psi[:, :, None]) & both).sum(-1).clamp(min=1)
    ranks = torch.arange(1, s.shape[1] + 1, dtype=s.dtype, device=s.device)
    sums = torch.nn.functional.pad((1 / torch.log1p(ranks)).cumsum(0), (1, 0))
    first = ahead.sum(-1)
    return (sums[first + shared] - sums[first]) / shared
