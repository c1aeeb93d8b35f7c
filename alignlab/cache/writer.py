"""Collects scores as they are made and writes them to the score cache shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .shard import KEY_BYTES, Array, Keys, as_keys, make_folder, write_shard

Kind = tuple[torch.dtype, torch.Size]

SHARD_BYTES = 256 << 20  # hidden states fill memory long before they reach the number of rows
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class _Pending:
    """Rows that have been scored but not yet written."""

    keys: list[NDArray[np.bytes_]] = field(default_factory=list)
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    rows: int = 0
    nbytes: int = 0
    since: float = field(default_factory=time.monotonic)


class ShardWriter:
    """Collects scores and writes them as shards while scoring goes on; closing (also by an error) writes the rest."""

    def __init__(
        self,
        folder: Path,
        describe: Callable[[Mapping[str, str]], None],
        rank: int = 0,
        shard_rows: int = 4096,
        shard_seconds: float = 60.0,
    ) -> None:
        if shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, found {shard_rows}")
        self._folder, self._describe, self._rank = folder, describe, rank
        self._shard_rows, self._shard_seconds = shard_rows, shard_seconds
        self._pending = _Pending()

    def append(self, keys: Keys, values: Mapping[str, Sequence[Array | Tensor]]) -> None:
        """Adds scores: per column one array ``[n]`` or ``[n, d]`` (float32, float16 or bfloat16) per key.

        Raises:
            ValueError: NaN or infinite values (nothing of this call is kept), wrong counts, shapes or dtypes.
            OSError: a full shard could not be written.
        """
        wanted = as_keys(keys)
        columns = {name: [_as_row(name, row) for row in rows] for name, rows in values.items()}
        for name, rows in columns.items():
            _check_rows(name, rows, wanted)
        if not len(wanted):
            return
        kinds = {name: _kind(rows[0]) for name, rows in columns.items()}
        if self._pending.rows and kinds != self._pending.kinds:
            self.flush()  # a shard holds one set of columns, each of one dtype and width
        pending = self._pending
        pending.kinds = kinds
        pending.keys.append(wanted)
        pending.rows += len(wanted)
        for name, rows in columns.items():
            pending.columns.setdefault(name, []).extend(rows)
            pending.nbytes += sum(row.nbytes for row in rows)
        age = time.monotonic() - pending.since
        if pending.rows >= self._shard_rows or pending.nbytes >= SHARD_BYTES or age >= self._shard_seconds:
            self.flush()

    def flush(self) -> Path | None:
        """Writes what has been collected as one shard; returns its path, or None if there was nothing to write."""
        pending, self._pending = self._pending, _Pending()
        if not pending.rows:
            return None
        make_folder(self._folder)
        self._describe({name: _dtype_name(dtype) for name, (dtype, _) in pending.kinds.items()})
        return write_shard(self._folder, self._rank, np.concatenate(pending.keys), pending.columns)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


def _as_row(column: str, row: Array | Tensor) -> Tensor:
    """One row of scores as a CPU tensor of its own, so that the caller may reuse its buffer."""
    tensor = torch.as_tensor(row).detach().to("cpu", copy=True).contiguous()
    if tensor.dtype not in DTYPES or tensor.ndim not in (1, 2):
        allowed = ", ".join(map(_dtype_name, DTYPES))
        raise ValueError(
            f"a row of {column!r} must be [n] or [n, d] of {allowed}; found {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def _check_rows(column: str, rows: Sequence[Tensor], keys: NDArray[np.bytes_]) -> None:
    """Refuses rows of one ``append`` that do not fit each other, or are not numbers."""
    if len(rows) != len(keys):
        raise ValueError(f"column {column!r} has {len(rows)} rows for {len(keys)} keys")
    if len(kinds := {_kind(row) for row in rows}) > 1:
        raise ValueError(f"rows of {column!r} differ in dtype or width: {sorted(map(str, kinds))}")
    bad = [position for position, row in enumerate(rows) if not bool(torch.isfinite(row).all())]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(rows)} rows of {column!r} hold NaN or infinite scores, the first at position {bad[0]} "
            f"(key {keys[bad[0]].ljust(KEY_BYTES, bytes(1)).hex()}); they are not cached"
        )


def _kind(row: Tensor) -> Kind:
    return row.dtype, row.shape[1:]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
