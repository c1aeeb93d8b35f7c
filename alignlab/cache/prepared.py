"""Prepared sets on disk: made once by one process, under the identity of their content, and mapped by all others."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignlab.data import DataOptions, DataReport, Prepared, lengths, open_rows, open_sources, prepare, prepared_key

from .entries import LAST_USED, states_in
from .lock import WriterLock, lock_path
from .manifest import MANIFEST, damage_of, write_manifest

logger = logging.getLogger(__name__)

FOLDER = "prepared"
ROWS, REPORT, REJECTED, FAILED = "rows.arrow", "report.json", "rejected_rows.jsonl", ".failed"
IN_MEMORY_ROWS = 10_000  # of a list of Python objects: it lies in memory anyway
PLACE = "data_cache_dir, score_cache_dir or ALIGNLAB_CACHE"  # what names the folder, the first that is given
ROUND = 30.0  # seconds between two words of who waits
GROWTH = {".gz": 8.0, ".parquet": 5.0}  # a prepared set and its draft, in bytes of the source; 2.5 of plain text


def file_memory(root: Path) -> Path:
    """Returns the folder under a cache that remembers the hashes of source files."""
    return root / FOLDER / ".files"


class PreparedSets:
    """All prepared sets under one folder of the cache.

    Args:
        root: the cache; sets stand in its folder ``prepared``, one folder for each, named by its content.
        workers: processes that prepare a set. progress: whether to show how far that is.
    """

    def __init__(self, root: Path, workers: int = 1, progress: bool = True) -> None:
        self.folder, self.workers, self.progress = root / FOLDER, workers, progress

    def open(self, source: Any, tokenizer: PreTrainedTokenizerBase, options: DataOptions, seed: int = 0) -> Prepared:
        """Returns the set that ``prepare`` makes of a source, from the disk where it has been made before.

        Of all processes on one file system one makes it, under a lock; the others wait for it and map what it made.
        Rejected rows are written to ``options.rejected_rows`` in either case.

        Raises:
            ValueError: as ``prepare`` does; who waited is told what stopped the process that prepared.
            OSError: the folder cannot be written, or has too little room.
        """
        if isinstance(source, (list, tuple)) and len(source) <= IN_MEMORY_ROWS and _are_rows(source):
            return prepare(source, tokenizer, options, seed, self.progress, self.workers)
        sources = open_sources(source)
        key = prepared_key(sources, tokenizer, options, seed, file_memory(self.folder.parent))
        folder = self.folder / key
        with suppress(FileNotFoundError):  # deleted while it is opened
            if _is_whole(folder, say=True):
                return _opened(folder, options)
        try:
            with self._only_maker(key) as ours:
                if ours:
                    self._make(source, tokenizer, options, seed, key)
                return _opened(folder, options)  # before anybody else may delete it
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            logger.warning("%s: every rank prepares rows in its own memory; data_cache_dir names a folder", error)
            return prepare(source, tokenizer, options, seed, self.progress, self.workers)

    @contextmanager
    def _only_maker(self, key: str) -> Iterator[bool]:
        """Holds the lock of one set; says whether the set is still to be made, once nobody else is making it."""
        began, lock = (
            time.time(),
            WriterLock(lock_path(self.folder, key), "preparing the same rows", "prepared rows", PLACE),
        )
        while not lock.acquire(ROUND):
            logger.info("prepared rows: still waiting after %d s; %s", time.time() - began, self._pulse(key))
        try:
            failed = self.folder / ".locks" / f"{key}{FAILED}"
            if failed.exists() and failed.stat().st_mtime >= began:
                raise ValueError(failed.read_text(encoding="utf-8"))
            try:
                yield not _is_whole(self.folder / key)
            except ValueError as error:
                failed.write_text(str(error), encoding="utf-8", errors="backslashreplace")
                raise
        finally:
            lock.release()

    def _pulse(self, key: str) -> str:
        """Says how far the process that prepares has come, by what it has written."""
        for folder in self.folder.glob(f".making-{key}-*"):
            if files := states_in(folder):
                size, last = sum(one.st_size for one in files) / 1e6, max(one.st_mtime for one in files)
                return f"{size:.1f} MB are written, the last of them {max(0, time.time() - last):.0f} s ago"
        return "nothing is written yet"

    def _make(self, source: Any, tokenizer: PreTrainedTokenizerBase, options: DataOptions, seed: int, key: str) -> None:
        """Prepares aside and renames, so that a kill at any moment leaves the whole set or none."""
        for left in self.folder.glob(f".making-{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        aside = self.folder / f".making-{key}-{uuid.uuid4().hex[:8]}"
        self._check_room(source)
        aside.mkdir(parents=True)
        try:
            began = time.monotonic()
            written = replace(options, rejected_rows=aside / REJECTED)
            prepared = prepare(source, tokenizer, written, seed, self.progress, self.workers, aside)
            report, rows = prepared.report, prepared.dataset
            fields = [name.removesuffix("_ids") for name in rows.column_names if name.endswith("_ids")]
            tokens = sum(int(lengths(rows, field).sum()) for field in fields)
            content = {**asdict(report), "kind": options.kind, "rows": len(rows), "tokens": tokens}
            (aside / REPORT).write_text(json.dumps(content, default=str), encoding="utf-8", errors="backslashreplace")
            size, seconds = (aside / ROWS).stat().st_size, time.monotonic() - began
            write_manifest(aside)
            if (self.folder / key).exists():  # damaged, or a part of one
                set_aside(self.folder / key)
            os.rename(aside, self.folder / key)
        except OSError as error:
            reason = f"cannot write prepared rows: {error.strerror}; data_cache_dir names another folder"
            raise OSError(error.errno, reason, str(self.folder)) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        logger.info(
            "prepared rows: %d rows in %.0f s by %d processes, %.1f MB (%.0f bytes a row) in %s",
            *(report.rows_read, seconds, self.workers, size / 1e6, size / report.rows_used, self.folder / key),
        )

    def _check_room(self, source: Any) -> None:
        """Raises OSError where the disk has too little room for a set of that size, before an hour is spent on it."""
        need = 0.0
        for one in open_sources(source):
            path = Path(one.path).expanduser() if one.path else Path("")
            files = [path] if path.is_file() else [file for file in path.rglob("*") if one.path and file.is_file()]
            need += max(1.0, one.weight) * sum(file.stat().st_size * GROWTH.get(file.suffix, 2.5) for file in files)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(
                f"{self.folder} has {free / 1e9:.1f} GB free, and preparing these rows may take {need / 1e9:.1f} GB: "
                "make room there, or let data_cache_dir name another folder"
            )


def _are_rows(source: Any) -> bool:
    return all(one.rows is not None for one in open_sources(source)) if source else True


def set_aside(folder: Path) -> Path:
    """Renames a set that is damaged or deleted so that nobody opens it again; only for who holds its lock."""
    return folder.rename(folder.with_name(f".damaged-{folder.name}-{uuid.uuid4().hex[:8]}"))


def _is_whole(folder: Path, say: bool = False) -> bool:
    """True for a set that is there with all its bytes; may say what one lacks."""
    if not (folder / MANIFEST).exists():
        return False
    damage = damage_of(folder)
    if damage and say and folder.exists():
        logger.warning("Damaged prepared set %s: %s. It is prepared again.", folder, damage)
    return not damage


def _opened(folder: Path, options: DataOptions) -> Prepared:
    with suppress(OSError):
        (folder / LAST_USED).touch()
    report = DataReport.from_json(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    if options.rejected_rows is not None and (folder / REJECTED).exists():
        options.rejected_rows.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / REJECTED, options.rejected_rows)
    elif options.rejected_rows is not None:
        options.rejected_rows.unlink(missing_ok=True)
    return Prepared(open_rows(folder / ROWS, report.fingerprint), report)
