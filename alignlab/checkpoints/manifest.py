"""The manifest of a checkpoint: size and checksum of every file, written last: what has one is complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "manifest.json"
_INDEX = ".metadata"  # as torch.distributed.checkpoint names it


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written; the message is the reason."""


class FileRecord(BaseModel):
    """What a file of a checkpoint must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint is, and what each of its files must be.

    Attributes:
        step: optimiser steps done. ranks: processes that wrote it. zero_stage: of DeepSpeed; None without.
        resumable: False where optimiser and random states were left out (``save_only_model``).
        created: when, ISO 8601 in UTC, to the microsecond.
        files: by path within the checkpoint folder.
        sha256: of the manifest itself, as JSON without this field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["alignlab-checkpoint-1"] = "alignlab-checkpoint-1"
    step: int
    ranks: int
    zero_stage: int | None
    resumable: bool
    created: str
    files: dict[str, FileRecord]
    sha256: str = ""

    def checksum(self) -> str:
        """Returns what ``sha256`` must be."""
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def now() -> str:
    """Returns the time as manifests carry it; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def files_in(folder: Path) -> list[str]:
    """Returns the files of a checkpoint as paths within it, but for the manifest and hidden ones, the largest first.

    One hidden file is no leftover: ``.metadata``, without which torch cannot read a checkpoint in parts (FSDP2).
    """
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    shown = [one for one in found if one != Path(MANIFEST) and not _is_hidden(one)]
    return [one.as_posix() for one in sorted(shown, key=lambda one: (-found[one].stat().st_size, one))]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts[:-1]) or (path.name.startswith(".") and path.name != _INDEX)


def record_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Forces files to disk and returns what they are, several at a time."""

    def record(name: str) -> FileRecord:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(bytes=file.tell(), sha256=digest)

    names = list(names)
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        return dict(zip(names, pool.map(record, names), strict=True))


def damages(folder: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Returns what is wrong with the files named, one line each; reads every byte of those that have the right size."""

    def damage(item: tuple[str, FileRecord]) -> str | None:
        name, expected = item
        try:
            with open(folder / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected.bytes:
                    return f"{name} has {size} bytes, {expected.bytes} were written"
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected.sha256:
            return f"{name} is not what was written: sha256 {found[:12]}..., expected {expected.sha256[:12]}..."
        return None

    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        return [one for one in pool.map(damage, files.items()) if one is not None]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, its own checksum in it, and forces it to disk."""
    sealed = manifest.model_copy(update={"sha256": manifest.checksum()})
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(sealed.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a checkpoint folder; None if it has none.

    Raises:
        DamagedCheckpoint: it cannot be read, is of another format, or is not what was written.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DamagedCheckpoint(f"{MANIFEST} is not a manifest of this version: {where}: {first['msg']}") from error
    if manifest.sha256 != manifest.checksum():
        raise DamagedCheckpoint(f"{MANIFEST} is not what was written")
    return manifest


def _threads() -> int:
    return min(8, os.cpu_count() or 1)
