"""What losses of lists share: which of two completions is better, and what is reported."""

from __future__ import annotations

from torch import Tensor

from ._base import Listed


def better(lists: Listed) -> Tensor:
    """Returns ``[N, K, K]`` bool, True at (n, i, j) where both completions are there and i has the higher score."""
    there, scores = lists.present, lists.scores.detach()
    return (scores[:, :, None] > scores[:, None, :]) & there[:, :, None] & there[:, None, :]
