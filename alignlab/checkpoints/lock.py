"""One run a folder: a lock that a second run meets and that any death releases."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from alignlab.runtime import from_main, is_main

from .folders import clean
from .in_place import clean_up

LOCK, HOLDER = ".alignlab.lock", ".alignlab.holder"  # the second is for people
_PATIENCE = 5.0  # seconds: a run that was just killed may still be dying
_locks: dict[Path, FileLock] = {}


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds a run folder for this run, on rank 0; then removes what killed runs left of checkpoints. May be nested.

    Raises:
        ValueError: on all ranks, if another run lives in the folder.
    """
    from_main(lambda: _take(folder))
    try:
        yield
    finally:
        if is_main():
            _lock(folder).release()


def is_run_in(folder: Path) -> bool:
    """Returns whether a run lives in a folder now, of this process or of another."""
    if not (folder / LOCK).is_file():
        return False
    probe = FileLock(folder / LOCK)
    try:
        with probe.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> FileLock:
    """Returns this process's one lock of a folder, which counts how often it is held."""
    return _locks.setdefault(folder.resolve(), FileLock(folder / LOCK))


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip()
    except OSError:
        return "it does not say which"


def _take(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"output_dir: the folder cannot be made: {error.strerror}", str(folder)) from error
    lock = _lock(folder)
    first = not lock.is_locked
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise ValueError(
            f"output_dir: another run is writing to {folder} ({_holder(folder)}); wait for its end, or choose another "
            f"output_dir (lock: {folder / LOCK})"
        ) from None
    if first:
        (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        clean(folder)
        clean_up(folder)
