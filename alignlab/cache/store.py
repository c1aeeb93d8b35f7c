"""The on-disk store of the scores of frozen models: content keys to per-token values, in durable shards."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entries import LAST_USED
from .lock import WriterLock, lock_path
from .shard import (
    KEY_DTYPE,
    Array,
    DamagedShard,
    Keys,
    NewerShard,
    Shard,
    as_keys,
    read_shard,
    shard_paths,
    temporary_paths,
    write_durably,
)
from .writer import ShardWriter

logger = logging.getLogger(__name__)

Index = tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.int32]]

COLUMN = "logps"
META, DAMAGED = "meta.json", ".damaged"


def default_root() -> Path:
    """The cache folder: ``$ALIGNLAB_CACHE``, else ``$XDG_CACHE_HOME/alignlab/scores``, else ``~/.cache/...``."""
    if chosen := os.environ.get("ALIGNLAB_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alignlab" / "scores"


class ScoreCache:
    """All stores under one root folder, one per scorer fingerprint."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root) if root is not None else default_root()

    def open(self, fingerprint: str, meta: Mapping[str, Any] | None = None, verify: bool | None = None) -> ScoreStore:
        """Opens the store of one scorer; nothing is created on disk until something is written.

        Args:
            fingerprint: the scorer's identity (``fingerprint_model``); the name of the store's folder.
            meta: a description for people (``model``, ``dtype``, ...), written to ``meta.json`` with the first shard.
            verify: read every shard once and compare checksums. None: those alone that were changed, copied or
                restored since that was last done, which their times tell; False: none.

        Raises:
            ValueError: the fingerprint cannot be a folder name.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", fingerprint):
            raise ValueError(f"fingerprint {fingerprint!r} cannot name a folder: letters, digits and ._- are allowed")
        return ScoreStore(self.root, fingerprint, meta or {}, verify)


class ScoreStore:
    """The scores of one frozen model: key (16 bytes of content hash) -> per column one array of per-token values.

    Reading takes no lock. Writing: ``with store.writing() as writer:`` in one process; in several ranks, rank 0 holds
    ``store.lock()``, each rank uses its own ``store.writer(rank=...)``, then after a barrier all call ``refresh()``.
    """

    def __init__(self, root: Path, fingerprint: str, meta: Mapping[str, Any], verify: bool | None) -> None:
        self.root, self.fingerprint, self.folder = root, fingerprint, root / fingerprint
        self.meta = dict(meta)
        self._verify = verify
        self._shards: dict[str, Shard] = {}
        self._unusable: set[str] = set()
        self._indices: dict[str, Index] = {}
        self.refresh()

    def __len__(self) -> int:
        """Number of rows in all readable shards, doubles included."""
        return sum(len(shard.keys) for shard in self._shards.values())

    def refresh(self) -> None:
        """Takes in the shards that were written since; a damaged one is named in the log and set aside."""
        known = self._shards.keys() | self._unusable
        fresh = [path for path in shard_paths(self.folder) if path.name not in known]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            shards = list(pool.map(self._read, fresh))
        for path, shard in zip(fresh, shards, strict=True):
            if shard is None:
                self._unusable.add(path.name)
            else:
                self._shards[path.name] = shard
        if fresh:
            self._indices.clear()
        _touch(self.folder)

    def missing(self, keys: Keys, column: str = COLUMN) -> list[int]:
        """Positions of the keys that have no scores yet, ascending, each distinct key once (its first position)."""
        wanted = as_keys(keys)
        positions = np.flatnonzero(~self.holds(wanted, column))
        first = np.unique(wanted[positions], return_index=True)[1]
        return [int(position) for position in positions[np.sort(first)]]

    def holds(self, keys: Keys, column: str = COLUMN) -> NDArray[np.bool_]:
        """Whether each key has scores, ``[n]``."""
        return self._locate(as_keys(keys), column)[1]

    def get(self, keys: Keys, column: str = COLUMN) -> list[Array]:
        """The values of each key, in order: read-only arrays ``[n]`` or ``[n, d]``, views into the shards.

        float32 and float16 come back bit for bit; bfloat16 as float32, which holds the same values.

        Raises:
            KeyError: some keys have no scores in this column; says how many.
        """
        wanted = as_keys(keys)
        entries, found = self._locate(wanted, column)
        if not found.all():
            absent = np.flatnonzero(~found)
            raise KeyError(
                f"{len(absent)} of {len(wanted)} keys have no {column!r} in {self.folder}, "
                f"the first at position {absent[0]}"
            )
        _, shard_numbers, rows = self._index(column)
        shards = list(self._shards.values())
        return [shards[shard_numbers[entry]].columns[column].row(int(rows[entry])) for entry in entries]

    @contextmanager
    def writing(self, rank: int = 0, shard_rows: int = 4096, shard_seconds: float = 60.0) -> Iterator[ShardWriter]:
        """The lock and a writer in one; ask ``missing`` inside, as another process may have written while we waited."""
        with self.lock():
            with self.writer(rank, shard_rows, shard_seconds) as writer:
                yield writer
            self.refresh()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the one writer's lock of this fingerprint; then removes what killed writers left, and refreshes.

        Raises:
            OSError: the cache folder cannot be created or written.
        """
        lock = self.writers_lock()
        while not lock.acquire(seconds=60.0):
            pass
        try:
            self.clean()
            yield
        finally:
            lock.release()

    def writers_lock(self) -> WriterLock:
        """The one writer's lock of this fingerprint, not taken yet; whoever takes it calls ``clean`` first."""
        scorer = self.meta.get("model", self.fingerprint)
        return WriterLock(lock_path(self.root, self.fingerprint), f"scoring with {scorer}")

    def clean(self) -> None:
        """Removes what killed writers left, and takes in what others wrote; only for who holds the writer's lock."""
        for temporary in temporary_paths(self.folder):
            temporary.unlink(missing_ok=True)
        self.refresh()

    def writer(self, rank: int = 0, shard_rows: int = 4096, shard_seconds: float = 60.0) -> ShardWriter:
        """A writer that takes no lock itself: for ranks that work under the lock that rank 0 holds."""
        return ShardWriter(self.folder, self.describe, rank, shard_rows, shard_seconds)

    def describe(self, columns: Mapping[str, str]) -> None:
        """Writes ``meta.json``: the description given to ``open``, when and by what it was made, and its columns."""
        path = self.folder / META
        known = read_meta(self.folder)
        merged = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "alignlab": _version(),
            **self.meta,
            **known,
            "fingerprint": self.fingerprint,
            "columns": {**known.get("columns", {}), **columns},
        }
        if merged != known:
            write_durably(path, json.dumps(merged, indent=2, default=str).encode() + b"\n")

    def _read(self, path: Path) -> Shard | None:
        try:
            return read_shard(path, self._verify)
        except DamagedShard as damage:
            logger.warning("Damaged score shard %s: %s. Its rows will be scored again.", path, damage)
            set_aside(path)
        except NewerShard as reason:
            logger.warning("Score shard %s is left alone: %s. Its rows will be scored again.", path, reason)
        except FileNotFoundError:
            pass  # pruned, or set aside by another process, between listing and opening
        return None

    def _index(self, column: str) -> Index:
        """Sorted keys ``S16 [rows]`` with the shard and the row of each: 24 bytes per row, built when first asked."""
        if column not in self._indices:
            shards = list(self._shards.values())
            sizes = [len(shard.keys) if column in shard.columns else 0 for shard in shards]
            starts = np.cumsum([0, *sizes])
            keys = np.empty(starts[-1], KEY_DTYPE)
            for shard, start, size in zip(shards, starts, sizes, strict=False):
                keys[start : start + size] = shard.keys[:size]
            order = np.argsort(keys, kind="stable")  # stable: of a key written twice the older comes first, and wins
            keys = keys[order]
            numbers = (np.searchsorted(starts, order, side="right") - 1).astype(np.int32)
            order -= starts[numbers]
            self._indices[column] = (keys, numbers, order.astype(np.int32))
        return self._indices[column]

    def _locate(self, wanted: NDArray[np.bytes_], column: str) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each wanted key stands in the index of ``column``, and whether it is there at all."""
        keys = self._index(column)[0]
        if not len(keys):
            return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
        entries = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return entries, keys[entries] == wanted


def read_meta(folder: Path) -> dict[str, Any]:
    """The description of one store; empty if there is none or it cannot be read (it only informs people)."""
    with suppress(OSError, ValueError):
        meta = json.loads((folder / META).read_bytes())
        if isinstance(meta, dict):
            return meta
    return {}


def set_aside(path: Path) -> bool:
    """Renames a damaged shard so that nobody reads it again; False where the folder is read-only or it is gone."""
    try:
        path.rename(path.with_name(path.name + DAMAGED))
    except OSError:
        return False
    return True


def _version() -> str:
    try:
        return version("alignlab")
    except PackageNotFoundError:  # run from a checkout that is only on the path
        return "not installed"


def _touch(folder: Path) -> None:
    """Notes the time of last use, for ``alignlab cache info`` and ``prune``; a read-only cache is simply not noted."""
    with suppress(OSError):
        if folder.is_dir():
            (folder / LAST_USED).touch()
