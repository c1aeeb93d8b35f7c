"""Metrics of lists: how well their rewards order what is scored, and the best and the worst of each as a pair."""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.losses import Listed, LossOutput


def _kept(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values.detach().double(), torch.zeros((), dtype=torch.float64, device=values.device))


def list_means(values: Tensor, where: Tensor) -> Tensor:
    """Returns each list's mean ``[N]`` of ``values [N, K]`` over the completions in ``where [N, K]``, float64."""
    return _kept(values, where).sum(-1) / where.sum(-1).clamp(min=1)


def ends(batch: Listed) -> tuple[Tensor, Tensor]:
    """Returns which completions are the best, and which the worst of their list, ``[N, K]`` bool each; ties are all."""
    there, scores = batch.present, batch.scores.detach().double()
    low, high = (scores.masked_fill(~there, sign * torch.inf) for sign in (-1, 1))
    best = there & (low == low.amax(-1, keepdim=True))
    return best, there & (high == high.amin(-1, keepdim=True))


def orders(output: LossOutput, batch: Listed) -> dict[str, Tensor]:
    """Returns how well the rewards of each list order it, ``[N]`` float64 each.

    accuracies: share of the pairs of which one is scored higher whose better completion has the higher reward,
    strictly. top1: whether a best completion's reward is higher than that of all others, strictly. ndcg:
    ``sum_i g_i d_i / sum_i g_i d*_i`` with the gain g = score - the list's least, the discount d = 1 / log2(1 + rank)
    under the rewards, the mean of it over equal rewards' ranks, and d* the same under the scores.
    """
    assert output.rewards is not None, "a loss of lists returns rewards"
    there = batch.present
    rewards, scores = (_kept(one, there) for one in (output.rewards, batch.scores))
    both = there[:, :, None] & there[:, None, :]
    better = both & (scores[:, :, None] > scores[:, None, :])
    wins = better & (rewards[:, :, None] > rewards[:, None, :])
    best, _ = ends(batch)
    low = torch.full_like(rewards, -torch.inf)
    top, rest = (torch.where(where, rewards, low).amax(-1) for where in (best, there & ~best))
    gains = _kept(scores - torch.where(there, scores, -low).amin(-1, keepdim=True), there)
    found, ideal = ((gains * _discounts(one, both)).sum(-1) for one in (rewards, scores))
    return {
        "accuracies": wins.sum((-2, -1)).double() / better.sum((-2, -1)).clamp(min=1),
        "top1": (top > rest).double(),
        "ndcg": found / ideal,
    }


def _discounts(values: Tensor, both: Tensor) -> Tensor:
    """Returns each completion's discount by its rank under ``values [N, K]``, the mean over the ranks of equal ones."""
    above = (both & (values[:, None, :] > values[:, :, None])).sum(-1)
    equal = (both & (values[:, None, :] == values[:, :, None])).sum(-1)
    ranks = torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device)
    sums = torch.cat([ranks.new_zeros(1), (1 / torch.log2(1 + ranks)).cumsum(0)])
    return (sums[above + equal] - sums[above]) / equal.clamp(min=1)
