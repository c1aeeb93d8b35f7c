"""The checkpoints of a run folder: written aside and renamed, chosen for resuming, the oldest deleted."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError

from alignlab.runtime import from_main, gathered, is_main, rank_and_ranks, wait_for_all

from .manifest import (
    MANIFEST,
    DamagedCheckpoint,
    Manifest,
    damages,
    files_in,
    now,
    read_manifest,
    record_files,
    write_manifest,
)
from .universal import UNIVERSAL

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Hidden names, which nobody takes for a checkpoint: transformers' get_last_checkpoint and rotation no more than we do.
SAVING, REPLACED, DELETING = ".saving-", ".replaced-", ".deleting-"
_ASIDE = re.compile(r"\..+\.new-[0-9a-f]{8}")  # what ``write_whole`` had not renamed yet
_SHOWN = 3  # damaged files that a message names


# ---- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def written_aside(final: Path, zero_stage: int | None = None, resumable: bool = True) -> Iterator[Path]:
    """Gives all ranks one hidden folder to write a checkpoint into; it becomes ``final`` whole, or not at all.

    Once every rank has written, files are forced to disk and their checksums taken (each rank does its share), the
    manifest is written last, and rank 0 renames the folder. A crash at any moment leaves the checkpoints that were
    there before, and ``clean`` removes what it left of this one.

    Args:
        final: ``checkpoint-N`` in the run folder; one of that name that is there already is replaced.
        zero_stage, resumable: what the manifest says of them.

    Raises:
        OSError: it could not be written, a full disk for instance; says which checkpoint is the newest good one.
        ValueError: the ranks do not share the folder.
    """
    aside = final.with_name(SAVING + final.name)
    try:
        from_main(lambda: make_afresh(aside))
        if not all(gathered(aside.is_dir())):
            raise ValueError(f"output_dir: {final.parent} must be a folder that all ranks share")
        yield aside
        wait_for_all()
        _seal(aside, int(final.name.split("-")[1]), zero_stage, resumable)
        from_main(lambda: _publish(aside, final))
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(final.parent).free / 1e6  # of a full disk, torch.save says "unexpected pos"
        if is_main():
            shutil.rmtree(aside, ignore_errors=True)
        kept = [one.path.name for one in _found(final.parent) if one.manifest]
        rest = f"{kept[0]} is the newest that is complete" if kept else "there is no earlier one"
        raise OSError(f"{final} could not be saved ({free:.1f} MB are free there): {error}; {rest}") from error


def make_afresh(folder: Path) -> None:
    """Makes an empty folder where there may have been one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(folder: Path, step: int, zero_stage: int | None, resumable: bool) -> None:
    """Forces every file to disk and writes the manifest; each rank takes its share of the files."""
    rank, ranks = rank_and_ranks()
    names = from_main(lambda: files_in(folder))
    parts = gathered(record_files(folder, names[rank::ranks]))
    files = dict(sorted(item for part in parts for item in part.items()))
    manifest = Manifest(step=step, ranks=ranks, zero_stage=zero_stage, resumable=resumable, created=now(), files=files)
    from_main(lambda: write_manifest(folder, manifest))


def _publish(aside: Path, final: Path) -> None:
    """Renames; between the two renames that replacing takes, ``clean`` can put the old folder back."""
    for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        force_to_disk(folder)
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    aside.rename(final)
    force_to_disk(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- looking after them --------------------------------------------------------------------------------------------


def clean(run_folder: Path) -> None:
    """Removes what killed saves and deletions left behind, and says so; call it under the run's lock, on one rank."""
    for path in (one for one in run_folder.glob(".*.new-*") if _ASIDE.fullmatch(one.name)):
        path.unlink(missing_ok=True)
    for path in sorted(run_folder.glob(".*-checkpoint-*")):
        kind, final = re.match(r"(\.[a-z]+-)(.*)", path.name).groups()  # type: ignore[union-attr]
        if kind not in (SAVING, REPLACED, DELETING, UNIVERSAL) or not CHECKPOINT.fullmatch(final):
            continue
        if kind == REPLACED and not (run_folder / final).exists():
            path.rename(run_folder / final)
            logger.warning("%s: a killed run was about to replace it; it is back", run_folder / final)
            continue
        shutil.rmtree(path, ignore_errors=True)
        if kind == SAVING:
            logger.warning("%s: a killed run was saving it; the unfinished files are deleted", run_folder / final)
        else:
            logger.info("%s: a killed run left it behind; it is deleted", path)


def rotate(run_folder: Path, limit: int | None, keep: Collection[str]) -> None:
    """Deletes the oldest checkpoints until ``limit`` are left (None or 0: no limit); never those named in ``keep``."""
    if not limit or limit < 0:
        return
    found = [one.path for one in _found(run_folder)]
    others = [path for path in found if path.name not in keep]
    for path in others[max(limit - (len(found) - len(others)), 0) :]:
        gone = path.with_name(DELETING + path.name)
        path.rename(gone)  # half-deleted, it is no checkpoint any more
        shutil.rmtree(gone, ignore_errors=True)


# ---- choosing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A checkpoint as its folder shows it, before its files are read."""

    path: Path
    manifest: Manifest | None
    created: str


def _found(run_folder: Path) -> list[_Found]:
    """Returns the checkpoints of a run folder, the newest first: by when they were saved, not by their step."""
    result = []
    for path in run_folder.iterdir() if run_folder.is_dir() else ():
        if CHECKPOINT.fullmatch(path.name) and path.is_dir():
            manifest = None
            with suppress(DamagedCheckpoint):
                manifest = read_manifest(path)
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="microseconds")
            result.append(_Found(path, manifest, manifest.created if manifest else changed))
    return sorted(result, key=lambda one: (one.created, int(one.path.name.split("-")[1])), reverse=True)


def holds_checkpoints(run_folder: Path) -> Path | None:
    """Returns the newest checkpoint of a run folder, good or not; None if there is none."""
    found = _found(run_folder)
    return found[0].path if found else None


def newest_good(run_folder: Path, trust: bool = False) -> Path | None:
    """Returns the newest checkpoint whose files are what was written, or None; names every newer one and its damage.

    Args:
        trust: take one without a manifest, too, if it holds a ``trainer_state.json``.
    """
    for path in from_main(lambda: [one.path for one in _found(run_folder)]):
        damage = problem(path)
        if damage is None or (trust and damage == NO_MANIFEST and (path / "trainer_state.json").is_file()):
            return path
        if is_main():
            logger.warning("resume_from_checkpoint: %s is passed over: %s", path, damage)
    return None


NO_MANIFEST = "it has no manifest.json: it was not finished, or another program wrote it"


def problem(folder: Path) -> str | None:
    """Returns what speaks against resuming from a checkpoint; None where all its files are what was written.

    Every rank reads its share of the files, and all get the same answer.
    """
    rank, ranks = rank_and_ranks()
    try:
        manifest = from_main(lambda: read_manifest(folder))
    except DamagedCheckpoint as damage:
        return str(damage)
    if manifest is None:
        return NO_MANIFEST
    if not manifest.resumable:
        return "it holds the model alone (save_only_model); a new run can start from it: model: {name_or_path: ...}"
    if not manifest.files:
        return f"its {MANIFEST} names no file"
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    found = damages(folder, {name: manifest.files[name] for name in names[rank::ranks]})
    found = [one for part in gathered(found) for one in part]
    unknown = sorted(set(from_main(lambda: files_in(folder))) - set(names))
    found += [f"{name} is not in {folder.name}'s manifest" for name in unknown]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more if found else None


def is_zero(folder: Path) -> bool:
    """True for a checkpoint that DeepSpeed wrote: loading it runs what its pickles say."""
    return (folder / "latest").is_file() or any(folder.glob("global_step*"))


def check(folder: Path, trust: bool = False) -> None:
    """Refuses a checkpoint named by the user that is not what a run wrote.

    Raises:
        ValueError: it is damaged; or it has no manifest and loading it would run its pickles.
    """
    if not from_main(folder.is_dir):
        raise ValueError(f"resume_from_checkpoint: there is no folder {folder}")
    if trust:
        return
    damage = problem(folder)
    if damage is None:
        return
    if damage == NO_MANIFEST and not from_main(lambda: is_zero(folder)):
        if not from_main((folder / "trainer_state.json").is_file):
            raise ValueError(f"resume_from_checkpoint: {folder} is no checkpoint: it has no trainer_state.json")
        if is_main():
            logger.warning("resume_from_checkpoint: %s cannot be checked: %s", folder, damage)
        return
    raise ValueError(f"resume_from_checkpoint: {folder}: {damage}. To load it all the same: trust_checkpoint: true")
