"""What the commands say of the cache: its stores and sets, and what is damaged in them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


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
