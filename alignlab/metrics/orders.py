"""How well rewards order the answers of lists that are scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .statistics import Array, Figures, ragged, standard_error, wilson_interval


def list_ranking(rewards: Sequence[ArrayLike], scores: Sequence[ArrayLike]) -> Figures:
    """How well rewards order lists of scored answers: three figures, each a mean over lists.

    accuracy = share of a list's pairs of which one is scored higher whose better answer has the higher reward,
    strictly; ``error`` is the standard error of its mean. top1 = share of lists in which a best answer has a higher
    reward than all that are not, strictly; ``low`` and ``high`` are its 95% Wilson interval. ndcg = sum_i g_i d_i /
    sum_i g_i d*_i with the gain g = score - the list's least, d = 1 / log2(1 + rank) under the rewards, its mean over
    the ranks of equal rewards, and d* the same under the scores.

    Source: Jarvelin and Kekalainen 2002, "Cumulated gain-based evaluation of IR techniques"; equal rewards as in
    McSherry and Najork 2008.

    Args:
        rewards, scores: of each list, one number an answer.

    Raises:
        ValueError: no list, unequal lengths, a value that is not finite, or a list whose scores are all equal.
    """
    columns = ragged("rewards", rewards), ragged("scores", scores)
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"rewards has {len(columns[0])} lists, scores {len(columns[1])}")
    accuracies, firsts, gains = [], [], []
    for index, (one, known) in enumerate(zip(*columns, strict=True)):
        if one.shape != known.shape or len(known) < 2 or known.min() == known.max():
            raise ValueError(f"scores: list {index} has {known.tolist()}; expected as many as rewards, not all equal")
        better, best = known[:, None] > known, known == known.max()
        accuracies.append(float((one[:, None] > one)[better].mean()))
        firsts.append(float(one[best].max() > one[~best].max()))
        gain = known - known.min()
        gains.append(float((gain * _discounts(one)).sum() / (gain * _discounts(known)).sum()))
    top1 = float(np.mean(firsts))
    low, high = wilson_interval(top1, len(firsts))
    found: Figures = {"accuracy": float(np.mean(accuracies)), "error": standard_error(accuracies)}
    return found | {"top1": top1, "low": low, "high": high, "ndcg": float(np.mean(gains)), "lists": len(firsts)}


def _discounts(values: Array) -> Array:
    """Returns 1 / log2(1 + rank) of each value, the highest first; equal ones share the mean of theirs."""
    above, equal = (values > values[:, None]).sum(1), (values == values[:, None]).sum(1)
    sums = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(2, len(values) + 2)))]
    return np.asarray((sums[above + equal] - sums[above]) / equal, dtype=np.float64)
