"""What losses of lists share: which of two completions is better, which are best, and what is learned of those."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._base import Listed
from ._scored import where_mask


def better(lists: Listed) -> Tensor:
    """Returns ``[N, K, K]`` bool, True at (n, i, j) where both completions are there and i has the higher score."""
    there, scores = lists.present, lists.scores.detach()
    return (scores[:, :, None] > scores[:, None, :]) & there[:, :, None] & there[:, None, :]


def best(lists: Listed) -> Tensor:
    """Returns ``[N, K]`` bool, True where no completion of the list is better; several where the best are tied."""
    return lists.present & ~better(lists).any(1)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Returns the means ``[N]`` of ``values [N, K]`` over the completions in ``where``, 0 where there are none."""
    return where_mask(values, where).sum(-1) / where.sum(-1).clamp(min=1)


def won_places(s: Tensor, lists: Listed) -> Tensor:
    """Returns ``[N, K]``: minus the log-probability that each completion is drawn before all that are worse.

    ``log sum_{j = k or j worse than k} exp(s_j - s_k)`` of the rewards ``s [N, K]``; 0 where none is worse, and at
    holes.
    """
    itself = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    gaps = (s[:, None, :] - s[:, :, None]).masked_fill(~(better(lists) | itself), -torch.inf)
    return gaps.logsumexp(-1)


def soft_labels(lists: Listed, alpha: float, like: Tensor) -> Tensor:
    """Returns ``softmax(scores / alpha) [N, K]`` over the completions that are there, in the dtype of ``like``.

    At alpha = 0, its limit, the best share all of it.
    """
    top = best(lists)
    if alpha == 0:
        return top.to(like) / top.sum(-1, keepdim=True).clamp(min=1)
    scores = where_mask(lists.scores.detach().to(like), lists.present)
    highest = scores.masked_fill(~lists.present, -torch.inf).amax(-1, keepdim=True)
    return torch.softmax(((scores - highest) / alpha).masked_fill(~lists.present, -torch.inf), -1)


def best_nll(lists: Listed, reduction: Literal["sum", "example"]) -> Tensor:
    """Returns ``[N]``: -L ("sum") or -L / n ("example") of the best completion, the mean of several tied ones."""
    scored = lists.completions
    return -mean_where(scored.sum_logps if reduction == "sum" else scored.mean_logps, best(lists))
