"""What the commands of the cache do with prepared sets: list, check and delete them."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from .entries import CacheEntry, Damage
from .lock import WriterLock, lock_path
from .manifest import damage_of
from .prepared import FOLDER, REPORT, set_aside
from .store import LAST_USED

logger = logging.getLogger(__name__)
_KEY = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"\.(?:making|damaged)-([0-9a-f]{32})-[0-9a-f]{8}")


def prepared_folders(root: Path) -> list[Path]:
    """The prepared sets under a cache; anything else a person may keep there is not ours to list or delete."""
    return _matching(root, _KEY)


def prepared_entry(folder: Path) -> CacheEntry:
    """Says what a prepared set is, by its report."""
    report: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    sources = ", ".join(str(one["name"]) for one in report.get("sources", []))
    used = folder / LAST_USED
    return CacheEntry(
        fingerprint=folder.name,
        model=f"rows of {sources or '?'}",
        dtype=str(report.get("kind", "?")),
        entries=int(report.get("rows", 0)),
        tokens=int(report.get("tokens", 0)),
        megabytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6,
        shards=1,
        last_used=datetime.fromtimestamp((used if used.exists() else folder).stat().st_mtime).astimezone(),
    )


def prepared_damages(root: Path, repair: bool) -> list[Damage]:
    """Reads every prepared set and compares checksums; ``repair`` sets damaged ones aside."""
    damages = []
    for folder in prepared_folders(root):
        if reason := damage_of(folder, verify=True):
            damages.append(Damage(folder.name, folder, reason))
            if repair:
                try:
                    set_aside(folder)
                except OSError:
                    logger.warning("Cannot rename %s: is its folder writable?", folder)
    return damages


def remove_prepared(root: Path, key: str) -> bool:
    """Deletes one prepared set, unless somebody is making it anew; who has it mapped goes on reading it."""
    lock = WriterLock(lock_path(root / FOLDER, key))
    if not lock.acquire(seconds=0.0):
        logger.warning("The prepared set %s is being written and is left alone.", key)
        return False
    try:
        shutil.rmtree(root / FOLDER / key, ignore_errors=True)
    finally:
        lock.release()
    return True


def remove_prepared_leftovers(root: Path) -> None:
    """Deletes damaged sets that were set aside, and half-made ones that nobody is making."""
    for folder in _matching(root, _LEFT):
        match = _LEFT.fullmatch(folder.name)
        lock = WriterLock(lock_path(root / FOLDER, match[1] if match else ""))
        if lock.acquire(seconds=0.0):
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _matching(root: Path, name: re.Pattern[str]) -> list[Path]:
    folder = root / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and name.fullmatch(path.name))
