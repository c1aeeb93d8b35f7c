"""The lock of one who writes: others say what they wait for, and take it over when its holder dies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .shard import PLACE, make_folder

logger = logging.getLogger(__name__)


def lock_path(root: Path, name: str) -> Path:
    """The lock of one store; beside it, so that deleting a store never deletes a lock somebody holds."""
    return root / ".locks" / f"{name}.lock"


@contextmanager
def held_if_free(root: Path, name: str) -> Iterator[bool]:
    """Holds the lock of one store if it is free, else says False at once: cleaning must not wait for a long scoring."""
    lock = WriterLock(lock_path(root, name))
    if not lock.acquire(seconds=0.0):
        logger.warning("%s is being written and is left alone.", root / name)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class WriterLock:
    """One writer's lock, which any death of its holder releases.

    Args:
        path: the lock's file; its folder is made.
        work: what its holder does, for those who wait ("scoring with ..."); waiting is said once, where it is given.
        what: is locked. place: the key that names its folder, for errors.
    """

    def __init__(self, path: Path, work: str = "", what: str = "score cache", place: str = PLACE) -> None:
        self.path, self.work, self.what, self.place = path, work, what, place
        self._lock = FileLock(path)
        self._said = False

    def acquire(self, seconds: float) -> bool:
        """Takes the lock, waiting for so long at most; says whether it is held now.

        Raises:
            OSError: the cache folder cannot be created or written.
        """
        make_folder(self.path.parent, self.what, self.place)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if self.work and not self._said:
                logger.warning("Another process is %s; waiting for it to finish (lock %s).", self.work, self.path)
                self._said = True
            return self._waited(seconds)
        except OSError as error:
            reason = f"cannot lock the {self.what}: {error.strerror}; choose another folder with {self.place}"
            raise OSError(error.errno, reason, str(self.path)) from error
        return True

    def release(self) -> None:
        """Gives the lock back; nothing where it is not held."""
        self._lock.release()

    def _waited(self, seconds: float) -> bool:
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True
