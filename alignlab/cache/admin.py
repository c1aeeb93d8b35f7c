"""What ``alignlab cache info|verify|prune`` does: list, check and clean stores of scores and prepared sets."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .entries import LAST_USED, CacheEntry, Damage, last_used, listed, megabytes_in
from .lock import held_if_free
from .prepared_admin import (
    prepared_damages,
    prepared_entry,
    prepared_folders,
    remove_prepared,
    remove_prepared_leftovers,
)
from .shard import (
    KEY_DTYPE,
    DamagedShard,
    NewerShard,
    read_shard,
    shard_paths,
    temporary_paths,
    verify_shard,
)
from .store import DAMAGED, META, read_meta, set_aside

logger = logging.getLogger(__name__)

SECONDS_PER_DAY = 86400


def cache_info(root: Path) -> list[CacheEntry]:
    """One row per store and prepared set, most recently used first; reads headers and keys, not scores or rows."""
    entries = []
    for entry_of, folders in ((_entry, _stores(root)), (prepared_entry, prepared_folders(root))):
        for folder in folders:
            with suppress(FileNotFoundError):  # deleted while it is read
                entries.append(entry_of(folder))
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


def cache_verify(root: Path, repair: bool = False) -> list[Damage]:
    """Reads every shard and every prepared set and compares checksums; ``repair`` sets damaged ones aside."""
    damages = []
    for folder in _stores(root):
        for path in shard_paths(folder):
            try:
                verify_shard(path)
            except DamagedShard as reason:
                damages.append(Damage(folder.name, path, str(reason)))
                if repair and not set_aside(path):
                    logger.warning("Cannot rename %s: is its folder writable?", path)
            except FileNotFoundError:
                continue  # pruned while we read
    return damages + prepared_damages(root, repair)


def cache_prune(
    root: Path,
    *,
    older_than_days: float | None = None,
    max_gb: float | None = None,
    fingerprints: Sequence[str] = (),
    dry_run: bool = False,
) -> list[CacheEntry]:
    """Deletes the stores and prepared sets that any criterion names, and what crashes and repairs left behind.

    A store that somebody is writing is left alone, with a warning.

    Args:
        root: the cache folder.
        older_than_days: stores not used for longer.
        max_gb: the least recently used stores, until the rest is no bigger than this (10^9 bytes).
        fingerprints: these stores; the first characters suffice where they name one store only.
        dry_run: delete nothing, return what would be deleted.

    Returns:
        The stores that were (or would be) deleted.

    Raises:
        ValueError: a negative limit; a fingerprint that names no store or several.
    """
    for name, limit in (("older_than_days", older_than_days), ("max_gb", max_gb)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"{name} must not be negative, found {limit}")
    entries = cache_info(root)
    chosen = _named(entries, older_than_days, max_gb, fingerprints)
    removed = [entry for entry in entries if entry.fingerprint in chosen]
    if dry_run:
        return removed
    prepared = {folder.name for folder in prepared_folders(root)}
    removed = [
        entry
        for entry in removed
        if (remove_prepared if entry.fingerprint in prepared else _remove)(root, entry.fingerprint)
    ]
    remove_prepared_leftovers(root)
    for folder in _stores(root):
        _remove_leftovers(root, folder)
    return removed


def _named(
    entries: list[CacheEntry], older_than_days: float | None, max_gb: float | None, fingerprints: Sequence[str]
) -> set[str]:
    """Returns the fingerprints that any criterion of ``cache_prune`` names."""
    chosen = {_complete(prefix, [entry.fingerprint for entry in entries]) for prefix in fingerprints}
    if older_than_days is not None:
        oldest = time.time() - older_than_days * SECONDS_PER_DAY
        chosen |= {entry.fingerprint for entry in entries if entry.last_used.timestamp() < oldest}
    if max_gb is not None:
        kept = 0.0
        for entry in (entry for entry in entries if entry.fingerprint not in chosen):  # most recently used first
            kept += entry.megabytes
            if kept > max_gb * 1000:
                chosen.add(entry.fingerprint)
    return chosen


def _stores(root: Path) -> list[Path]:
    """Folders under ``root`` that are stores; anything else a person may keep there is not ours to list or delete."""
    if not root.is_dir():
        return []
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted(f for f in folders if read_meta(f).get("fingerprint") == f.name or shard_paths(f))


def _entry(folder: Path) -> CacheEntry:
    meta = read_meta(folder)
    keys, tokens, shards = [np.empty(0, KEY_DTYPE)], 0, 0
    for path in shard_paths(folder):
        try:
            shard = read_shard(path, verify=False)
        except (DamagedShard, NewerShard, FileNotFoundError) as reason:
            logger.warning("Score shard %s is not counted: %s", path, reason)
            continue
        keys.append(shard.keys)
        tokens += max((len(column.values) for column in shard.columns.values()), default=0)
        shards += 1
    return CacheEntry(
        fingerprint=folder.name,
        model=str(meta.get("model", "?")),
        dtype=str(meta.get("dtype", "?")),
        entries=len(np.unique(np.concatenate(keys))),
        tokens=tokens,
        megabytes=megabytes_in(folder),
        shards=shards,
        last_used=last_used(folder),
    )


def _complete(prefix: str, names: Sequence[str]) -> str:
    """The one name that begins with ``prefix``."""
    found = [name for name in names if name == prefix] or [name for name in names if prefix and name.startswith(prefix)]
    if len(found) != 1:
        raise ValueError(
            f"fingerprint {prefix!r} names {len(found)} stores, it must name one of: {', '.join(names) or 'none'}"
        )
    return found[0]


def _remove(root: Path, fingerprint: str) -> bool:
    """Deletes the files of one store, and its folder if nothing else is in it, unless somebody holds the lock."""
    folder = root / fingerprint
    with held_if_free(root, fingerprint) as free:
        if free:
            for path in [*shard_paths(folder), *_leftovers(folder), folder / META, folder / LAST_USED]:
                path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
    return free


def _remove_leftovers(root: Path, folder: Path) -> None:
    if leftovers := _leftovers(folder):
        with held_if_free(root, folder.name) as free:
            for path in leftovers if free else []:
                path.unlink(missing_ok=True)


def _leftovers(folder: Path) -> list[Path]:
    """Damaged shards that were set aside, and half-written files."""
    return [path for path in listed(folder) if path.name.endswith(DAMAGED)] + temporary_paths(folder)
