"""The journal of a study on disk: whoever writes to it first cuts off what one who died there left by half."""

from __future__ import annotations

import logging
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

logger = logging.getLogger(__name__)


class _Lock(JournalFileSymlinkLock):
    """Optuna's lock, which is held while lines are added, and by nobody else."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.journal = journal

    def acquire(self) -> bool:
        """Waits for the lock; a last line without an end would make one with the next, which nobody could read."""
        super().acquire()
        with self.journal.open("rb+") as file:
            file.seek(max(0, file.seek(0, 2) - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                logger.warning("%s: its last line was written by half, and is cut off", self.journal)
        return True


def open_journal(path: Path) -> JournalStorage:
    """Returns the storage of a study in a journal, which is made where there is none."""
    return JournalStorage(JournalFileBackend(str(path), _Lock(path)))
