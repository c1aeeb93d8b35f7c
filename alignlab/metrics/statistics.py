"""Intervals, correlation and ranks, and the checks that every column of figures passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Figures = dict[str, Any]  # name -> number; nan where a figure is not defined
Z = 1.959963984540054  # the 97.5% quantile of the normal distribution: intervals are of 95%


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Returns the 95% score interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Source: Wilson 1927.
    """
    middle = share + Z**2 / (2 * rows)
    half = Z * np.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    scale = 1 + Z**2 / rows
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def bootstrap_interval(values: ArrayLike, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Returns the 2.5% and 97.5% percentiles of the means of ``resamples`` resamples; the same for the same seed."""
    (sample,) = columns(values=values)
    rng = np.random.default_rng(seed)
    means = [sample[rng.integers(0, len(sample), len(sample))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def standard_error(values: ArrayLike) -> float:
    """Returns the standard error of a mean, s / sqrt(N) with N - 1 in s; nan for a single value."""
    sample = np.asarray(values, dtype=np.float64)
    return float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else float("nan")


def correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Returns Pearson's correlation; nan where either side does not vary."""
    left, right = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    left, right = left - left.mean(), right - right.mean()
    scale = np.sqrt((left**2).sum() * (right**2).sum())
    return float((left * right).sum() / scale) if scale > 0 else float("nan")


def ranks(values: Array) -> Array:
    """Returns ranks; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place], dtype=np.float64)


def sigmoid(values: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -values)), dtype=np.float64)


def columns(**named: ArrayLike) -> list[Array]:
    """Returns columns as float64 arrays of one length, checked."""
    found = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    first = next(iter(found))
    for name, column in found.items():
        if column.ndim != 1 or len(column) == 0:
            raise ValueError(f"{name}: expected one number a row and at least one row, found shape {column.shape}")
        if len(column) != len(found[first]):
            raise ValueError(f"{name} has {len(column)} rows, {first} has {len(found[first])}")
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"{name}: row {row} is {column[row]}")
    return list(found.values())


def ragged(name: str, rows: Sequence[ArrayLike]) -> list[Array]:
    if not len(rows):
        raise ValueError(f"{name}: expected at least one answer")
    arrays = [np.asarray(row, dtype=np.float64) for row in rows]
    for index, row in enumerate(arrays):
        if row.ndim != 1 or not np.isfinite(row).all():
            raise ValueError(f"{name}: answer {index} is not a list of finite numbers")
    return arrays
