"""Preference ranking optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._base import Batch, Listed, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_non_negative
from ._lists import best_nll, better
from ._scored import where_mask


class PRO(Loss):
    """PRO: a ranking's likelihood by mean log-probabilities, sharper where scores lie apart, and the best is learned.

    Formula: ``-sum_k log(exp(p_k g_k) / (exp(p_k g_k) + sum_{j worse than k} exp(p_j g_kj)))
    + sft_weight (K - 1)^2 NLL(best)``, p = L / n, g_kj = score_k - score_j, ``g_k = max_j g_kj``.

    The gaps g are the paper's inverse temperatures. Without them (``temperature: false``) every g is 1, and the first
    term is Plackett and Luce's. It has no reference. Tied completions are not compared, as in ``plackett_luce``; the
    released code lets a tied one stand in the denominator as exp(0). Of several best ones the mean is learned.

    Args:
        temperature: whether gaps of scores sharpen the comparisons; they count in the units of the scores.
        sft_weight: >= 0; K is the number of completions of the list.
        nll_reduction: "sum" is -L, as in the released code; "example" is -L / n.

    Raises:
        ValueError: an option is out of its range.

    Source: Song et al. 2023, arXiv:2306.17492, eq. 4 to 9, with the weight of the released code, 0.05 (l - 1)^2.
    Elsewhere: neither in TRL nor in LLaMA-Factory; AlibabaResearch/DAMO-ConvAI, folder PRO.
    Collision: "PRO" is also proximalized preference optimisation (Guo et al. 2025, arXiv:2505.23316), another method.
    """

    needs = Needs(data="lists")

    def __init__(
        self, temperature: bool = True, sft_weight: float = 0.05, nll_reduction: Literal["sum", "example"] = "sum"
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sft_weight = check_non_negative("sft_weight", sft_weight)
        self.nll_reduction = nll_reduction

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        p = lists.completions.mean_logps
        gaps, worse = self._gaps(lists, p), better(lists)
        own = p * gaps.amax(-1)
        others = (p[:, None, :] * gaps - own[:, :, None]).masked_fill(~worse, -torch.inf)
        ranking = torch.cat([others, torch.zeros_like(own)[:, :, None]], -1).logsumexp(-1).sum(-1)
        weight = self.sft_weight * (lists.present.sum(-1).to(p) - 1) ** 2
        return LossOutput(ranking + weight * best_nll(lists, self.nll_reduction), rewards=p.detach())

    def _gaps(self, lists: Listed, like: Tensor) -> Tensor:
        """Returns ``[N, K, K]``, at (n, k, j) the gap g_kj where j is worse than k, else 0."""
        worse, scores = better(lists), lists.scores.detach().to(like)
        return where_mask(scores[:, :, None] - scores[:, None, :], worse) if self.temperature else worse.to(like)
