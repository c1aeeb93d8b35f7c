"""What the commands of the cache do with prepared sets: list, check and delete them."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from .entries import CacheEntry, Damage, last_used, listed, megabytes_in
from .lock import held_if_free
from .manifest import damage_of
from .prepared import FOLDER, REPORT, set_aside

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
    return CacheEntry(
        fingerprint=folder.name,
        model=f"rows of {sources or '?'}",
        dtype=str(report.get("kind", "?")),
        entries=int(report.get("rows", 0)),
        tokens=int(report.get("tokens", 0)),
        megabytes=megabytes_in(folder),
        shards=1,
        last_used=last_used(folder),
    )


def prepared_damages(root: Path, repair: bool) -> list[Damage]:
    """Reads every prepared set and compares checksums; ``repair`` sets damaged ones aside."""
    damages = []
    for folder in prepared_folders(root):
        if (reason := damage_of(folder, verify=True)) and folder.is_dir():  # else it was deleted while we read
            damages.append(Damage(folder.name, folder, reason))
            if repair:
                _put_away(root, folder)
    return damages


def _put_away(root: Path, folder: Path) -> None:
    """Sets a damaged set aside, unless somebody is making it anew or has made it so."""
    try:
        with held_if_free(root / FOLDER, folder.name) as free:
            if free and damage_of(folder, verify=True):
                set_aside(folder)
    except OSError:
        logger.warning("Cannot rename %s: is its folder writable?", folder)


def remove_prepared(root: Path, key: str) -> bool:
    """Deletes one prepared set, unless somebody is making it anew; who has it mapped goes on reading it."""
    with held_if_free(root / FOLDER, key) as free:
        if not free or not (root / FOLDER / key).exists():
            return free
        try:
            gone = set_aside(root / FOLDER / key)  # half-deleted, it is no set any more
        except OSError:
            logger.warning("Cannot rename %s: is its folder writable?", root / FOLDER / key)
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True


def remove_prepared_leftovers(root: Path) -> None:
    """Deletes damaged sets that were set aside, and half-made ones that nobody is making."""
    for folder in _matching(root, _LEFT):
        match = _LEFT.fullmatch(folder.name)
        with held_if_free(root / FOLDER, match[1] if match else "") as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _matching(root: Path, name: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in listed(root / FOLDER) if path.is_dir() and name.fullmatch(path.name))
