"""What the commands say of the cache: its stores and sets, and what is damaged in them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

LAST_USED = ".last_used"


@dataclass(frozen=True)
class CacheEntry:
    """One store, for people: whose scores, how many, how big (all its files), when last read or written.

    A prepared set is an entry, too: ``model`` says which sources it is made from, ``dtype`` is the kind of its rows.
    """

    fingerprint: str
    model: str
    dtype: str
    entries: int
    tokens: int
    megabytes: float
    shards: int
    last_used: datetime


@dataclass(frozen=True)
class Damage:
    """One shard, or one prepared set, whose bytes are not those that were written."""

    fingerprint: str
    path: Path
    reason: str


def listed(folder: Path) -> list[Path]:
    """Returns what is in a folder; nothing where there is none, or none any more."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def states_in(folder: Path) -> list[os.stat_result]:
    """Returns the state of each file in a folder; not of one that others rename or delete meanwhile."""
    states = []
    for path in listed(folder):
        with suppress(FileNotFoundError):
            if path.is_file():
                states.append(path.stat())
    return states


def megabytes_in(folder: Path) -> float:
    """Returns the size of all files in a folder."""
    return sum(one.st_size for one in states_in(folder)) / 1e6


def last_used(folder: Path) -> datetime:
    """Returns when a store or a set was last read or written.

    Raises:
        FileNotFoundError: it is not there any more.
    """
    try:
        state = (folder / LAST_USED).stat()
    except FileNotFoundError:
        state = folder.stat()
    return datetime.fromtimestamp(state.st_mtime).astimezone()
