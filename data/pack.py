"""Encoded rows in the memory that hashes and Arrow columns are made of, a chunk at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from .keys import KEY, packed_key
from .tokenise import Encoded

IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.bool_())


@dataclass(slots=True)
class Stretch:
    """A completion: ids as little-endian int32, and a mask of one byte for each."""

    ids: memoryview
    mask: bytes


@dataclass(slots=True)
class Packed:
    """An encoded row, with the content key of each completion."""

    prompt: memoryview
    completions: dict[str, Stretch]
    keys: dict[str, bytes]


def pack(rows: Sequence[Encoded]) -> list[Packed]:
    """Puts the ids of rows into one stretch of memory: one number after the other would take ten times as long."""
    ids = _views([one for row in rows for one in (row.prompt, *(side.ids for side in row.completions.values()))])
    return [_packed(row, next(ids), ids) for row in rows]


def _packed(row: Encoded, prompt: memoryview, ids: Iterator[memoryview]) -> Packed:
    completions = {name: Stretch(next(ids), bytes(side.mask)) for name, side in row.completions.items()}
    keys = {name: packed_key(prompt, one.ids, one.mask) for name, one in completions.items()}
    return Packed(prompt, completions, keys)


def _views(lists: Sequence[Sequence[int]]) -> Iterator[memoryview]:
    ends = list(accumulate(map(len, lists), initial=0))
    flat = np.fromiter(chain.from_iterable(lists), "<i4", ends[-1]).data
    return (flat[start:end] for start, end in pairwise(ends))


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Returns a column of packed ids, masks or keys, lists of them, or anything else."""
    if kind in (IDS, MASK):
        dtype: Any = np.dtype("<i4") if kind == IDS else np.dtype(bool)
        flat = pa.array(np.frombuffer(b"".join(values), dtype), kind.value_type)
    elif kind == KEY:
        return pa.Array.from_buffers(KEY, len(values), [None, pa.py_buffer(b"".join(values))])
    elif pa.types.is_list(kind) and kind.value_type in (IDS, MASK):
        flat = column(list(chain.from_iterable(values)), kind.value_type)
    else:
        return pa.array(values, kind)
    ends = np.fromiter(accumulate(map(len, values), initial=0), np.int32, len(values) + 1)
    return pa.ListArray.from_arrays(ends, flat, type=kind)
