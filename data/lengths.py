"""How many tokens rows have, from the offsets of a tokenised set's columns: no token is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LIST = "completions"
"""The field of a tokenised set that holds all completions of a list."""

Counts = np.ndarray[Any, Any]


def row_tokens(dataset: Any, fields: Sequence[str]) -> Counts:
    """Returns how many tokens each row puts through the model, ``[N]`` int64: its prompt once and its completions."""
    return sum((lengths(dataset, field) for field in fields), start=lengths(dataset, "prompt"))


def longest_text(dataset: Any, fields: Sequence[str]) -> int:
    """Returns the tokens of the longest prompt together with one of its completions; 0 without rows."""
    if not len(dataset):
        return 0
    after = np.zeros(len(dataset), np.int64)
    for field in fields:
        if field == LIST:
            sizes = list_sizes(dataset)
            own = np.maximum.reduceat(list_lengths(dataset), np.cumsum(sizes) - sizes)
        else:
            own = lengths(dataset, field)
        after = np.maximum(after, own)
    return int((lengths(dataset, "prompt") + after).max())


def lengths(dataset: Any, field: str) -> Counts:
    """Returns how many tokens each row has of ``field``, ``[N]`` int64.

    A field is "prompt", a completion, or "completions": those of a list together.
    """
    if field == LIST:
        sizes = list_sizes(dataset)
        return np.add.reduceat(list_lengths(dataset), np.cumsum(sizes) - sizes) if len(sizes) else sizes
    return _joined([pc.list_value_length(column) for column in _columns(dataset, field)])


def list_sizes(dataset: Any) -> Counts:
    """Returns how many completions each list has, ``[N]`` int64."""
    return _joined([pc.list_value_length(column) for column in _columns(dataset, LIST)])


def list_lengths(dataset: Any) -> Counts:
    """Returns the tokens of each completion of each list, one after the other, int64."""
    return _joined([pc.list_value_length(pc.list_flatten(column)) for column in _columns(dataset, LIST)])


def _columns(dataset: Any, field: str) -> list[pa.ChunkedArray]:
    name = f"{field}_ids"
    tables = dataset.select_columns([name]).with_format("arrow").iter(batch_size=10_000)
    return [table[name] for table in tables]


def _joined(parts: Sequence[Any]) -> Counts:
    return np.concatenate([np.empty(0, np.int64), *(part.to_numpy() for part in parts)]).astype(np.int64)
