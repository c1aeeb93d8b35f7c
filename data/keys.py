"""Names of rows by their content: hashes of what a model is given, in memory and as columns of a tokenised set."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .lengths import LIST

KEY_BYTES = 16
KEY = pa.binary(KEY_BYTES)
KEYS = pa.binary()
"""Of a list: the keys of its completions, one after the other (numpy cannot show lists of fixed width)."""
KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")
CHUNK = 100_000  # rows of which keys are taken at once

Tokens = Sequence[int] | np.ndarray[Any, Any]


def content_key(
    prompt_ids: Tokens, completion_ids: Tokens, completion_mask: Sequence[bool] | np.ndarray[Any, Any]
) -> bytes:
    """Hashes what a model is given and asked about: 16 bytes, the same on every machine.

    blake2b over (prompt length, completion length, prompt ids, completion ids, mask), lengths as little-endian int64,
    ids as little-endian int32, the mask as one byte a token.
    """
    prompt, completion = (np.ascontiguousarray(ids, dtype="<i4").data for ids in (prompt_ids, completion_ids))
    return packed_key(prompt, completion, np.asarray(completion_mask, dtype=bool).tobytes())


def packed_key(prompt: memoryview, completion: memoryview, mask: bytes) -> bytes:
    """Returns the content key of ids in memory as little-endian int32, and of a mask of one byte a token."""
    digest = hashlib.blake2b(struct.pack("<qq", len(prompt), len(completion)), digest_size=KEY_BYTES)
    digest.update(prompt)
    digest.update(completion)
    digest.update(mask)
    return digest.digest()


def prompt_key(prompt_ids: Tokens) -> bytes:
    """Hashes a prompt, by which rows are held out: 16 bytes, blake2b over its ids as little-endian int64."""
    return hashlib.blake2b(np.asarray(prompt_ids, dtype="<i8").tobytes(), digest_size=KEY_BYTES).digest()


def row_key(keys: Mapping[str, bytes]) -> bytes:
    """Hashes a row with all its completions, given the content key of each by name: 16 bytes."""
    return hashlib.blake2b(b"".join(name.encode() + key for name, key in keys.items()), digest_size=KEY_BYTES).digest()


def keys_of(dataset: Any, field: str) -> np.ndarray[Any, Any]:
    """Returns the key of each row's ``field`` ("prompt" or a completion), ``[N]`` of 16 bytes (numpy's S16).

    Of the field "completions" those of each list's completions are returned, one after the other.

    A column ``{field}_key`` is read; keys of a tokenised set that has none are computed. Mind that numpy cuts zeros
    off the end of single entries: ``tobytes`` of the array has all 16 bytes of each.
    """
    name = f"{field}_key"
    if name in dataset.column_names:
        return np.concatenate([np.empty(0, KEY_DTYPE), *_column(dataset, name)])
    columns = ["prompt_ids"] if field == "prompt" else ["prompt_ids", f"{field}_ids", f"{field}_mask"]
    rows = dataset.select_columns(columns).with_format("numpy")
    hashed = (one for row in rows for one in _hashed(row, field))
    return np.frombuffer(b"".join(hashed), KEY_DTYPE)


def _column(dataset: Any, name: str) -> Iterator[np.ndarray[Any, Any]]:
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=CHUNK):
        for part in table[name].chunks:
            if part.type == KEYS:
                _, offsets, values = part.buffers()
                first, last = np.frombuffer(offsets, np.int32)[[part.offset, part.offset + len(part)]].tolist()
                yield np.frombuffer(values, KEY_DTYPE, (last - first) // KEY_BYTES, first)
            else:
                yield np.frombuffer(part.buffers()[1], KEY_DTYPE, len(part), part.offset * KEY_BYTES)


def _hashed(row: Mapping[str, Any], field: str) -> list[bytes]:
    if field == "prompt":
        return [prompt_key(row["prompt_ids"])]
    ids, masks = row[f"{field}_ids"], row[f"{field}_mask"]
    if field != LIST:
        ids, masks = [ids], [masks]
    return [content_key(row["prompt_ids"], *one) for one in zip(ids, masks, strict=True)]
