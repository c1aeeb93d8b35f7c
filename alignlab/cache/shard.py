"""The file format of the score cache: one immutable, checksummed safetensors file per shard."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .entries import listed

PLACE = "score_cache_dir or ALIGNLAB_CACHE"  # what names the folder of the cache
Keys = Sequence[bytes] | NDArray[np.uint8] | NDArray[np.bytes_]
Array = NDArray[np.floating]

FORMAT = "alignlab-scores-1"
KEY_BYTES = 16
KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")
TEMPORARY = re.compile(r"\.writing-[0-9a-f]+\.tmp")
# <time in ns>-r<rank>-<sha256 of the whole file>.safetensors: sorts by age, cannot collide between ranks, and
# `sha256sum` checks it by hand. Because the checksum is in the name it covers every byte, the header included.
SHARD = re.compile(r"(?P<time>\d{20})-r(?P<rank>\d{4,})-(?P<sha256>[0-9a-f]{64})\.safetensors")


class DamagedShard(Exception):
    """A shard whose bytes are not those that were written; the message is the reason."""


class NewerShard(Exception):
    """A sound shard in a format that this version cannot read; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Column:
    """Ragged rows of one quantity: row i is ``values[offsets[i]:offsets[i + 1]]``, memory-mapped."""

    offsets: NDArray[np.int64]
    values: Tensor

    def row(self, index: int) -> Array:
        """Row ``index`` as a read-only array ``[n]`` or ``[n, d]``; bfloat16 comes back as float32 (exact)."""
        values = self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]
        array: Array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array.flags.writeable = False
        return array


@dataclass(frozen=True, eq=False)
class Shard:
    """One open shard: keys ``S16 [rows]`` and its columns by name; nothing but the keys is read from disk yet."""

    path: Path
    keys: NDArray[np.bytes_]
    columns: Mapping[str, Column]


def write_shard(folder: Path, rank: int, keys: NDArray[np.bytes_], columns: Mapping[str, list[Tensor]]) -> Path:
    """Writes one shard durably and returns its path: aside in the same folder, fsync, rename, fsync of the folder.

    Args:
        folder: an existing folder.
        rank: the writing rank; part of the name.
        keys: ``S16 [rows]``.
        columns: per name one CPU tensor ``[n]`` or ``[n, d]`` per row, of one dtype and one d.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing half-written stays behind.
    """
    tensors = {"keys": torch.from_numpy(keys.view(np.uint8).reshape(-1, KEY_BYTES).copy())}
    for name, rows in columns.items():
        lengths = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64)
        tensors[f"offsets.{name}"] = lengths.cumsum(0)
        tensors[f"values.{name}"] = torch.cat(rows)
    content = save(tensors, metadata={"format": FORMAT})
    now = time.time_ns()
    path = folder / f"{now:020d}-r{rank:04d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    write_durably(path, content, now)
    return path


def write_durably(path: Path, content: bytes, modified: int | None = None) -> None:
    """Puts ``content`` at ``path`` so that a crash at any moment leaves the old file or the new one, never a part.

    ``modified`` (ns) becomes the time at which the file was last changed; by default that is now.
    """
    temporary = path.parent / f".writing-{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            if modified is not None:
                os.utime(temporary, ns=(modified, modified))
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"cannot write {len(content) / 1e6:.1f} MB of scores: {error.strerror}; make room there, or choose another "
            f"folder with {PLACE}",
            str(path.parent),
        ) from error


def read_shard(path: Path, verify: bool | None = None) -> Shard:
    """Opens a shard, memory-mapped.

    Args:
        path: the file.
        verify: read the whole file once and hold it against its checksum. None: only where the file was changed,
            copied or restored since its checksum was last held against it, which its time of change tells.

    Raises:
        DamagedShard: truncated, or any byte differs from what was written.
        NewerShard: written in another format.
        OSError: the file is gone or cannot be read.
    """
    if verify or (verify is None and not _is_as_written(path)):
        verify_shard(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format")
            if found != FORMAT:
                raise NewerShard(f"format {found!r}, this version of alignlab reads {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise DamagedShard(str(error)) from error
    keys = tensors["keys"].numpy().view(KEY_DTYPE).reshape(-1)
    names = [name.removeprefix("values.") for name in tensors if name.startswith("values.")]
    columns = {name: Column(tensors[f"offsets.{name}"].numpy(), tensors[f"values.{name}"]) for name in names}
    return Shard(path, keys, columns)


def verify_shard(path: Path) -> None:
    """Reads the whole shard and compares it with the checksum in its name (about 1.5 GB/s per core with SHA-NI).

    A sound shard that was copied gets back the time at which it was written, and is not read whole again when opened.

    Raises:
        DamagedShard: naming the size, the checksum found and the one expected.
    """
    match = _parts(path)
    with open(path, "rb") as file:
        before = os.fstat(file.fileno()).st_mtime_ns
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size, after = file.tell(), os.fstat(file.fileno()).st_mtime_ns
    if found != match["sha256"]:
        raise DamagedShard(f"sha256 of its {size} bytes is {found[:12]}..., expected {match['sha256'][:12]}...")
    if before == after and not _is_as_written(path):
        with suppress(OSError):  # somebody else's file, or a read-only folder: it is read whole each time
            os.utime(path, ns=(int(match["time"]), int(match["time"])))


def _is_as_written(path: Path) -> bool:
    """True where the file was last changed when its name says that it was written (file systems may keep only us)."""
    return abs(path.stat().st_mtime_ns - int(_parts(path)["time"])) < 1000


def _parts(path: Path) -> re.Match[str]:
    match = SHARD.fullmatch(path.name)
    assert match is not None, f"{path} is not named like a shard"
    return match


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder, oldest first; empty if there is no such folder."""
    return sorted(path for path in listed(folder) if SHARD.fullmatch(path.name))


def temporary_paths(folder: Path) -> list[Path]:
    """Half-written files that a killed writer left behind."""
    return [path for path in listed(folder) if TEMPORARY.fullmatch(path.name)]


def as_keys(keys: Keys) -> NDArray[np.bytes_]:
    """Content keys as one ``S16 [n]`` array; accepts that, a list of 16-byte strings, or ``uint8 [n, 16]``."""
    if isinstance(keys, np.ndarray):
        if keys.dtype == KEY_DTYPE and keys.ndim == 1:
            return keys.astype(KEY_DTYPE, copy=False)
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
            raise ValueError(f"keys must be uint8 [n, {KEY_BYTES}], found {keys.dtype} {list(keys.shape)}")
        return np.ascontiguousarray(keys).view(KEY_DTYPE).reshape(-1)
    if wrong := {len(key) for key in keys} - {KEY_BYTES}:
        raise ValueError(f"a key must be {KEY_BYTES} bytes, found {min(wrong)}")
    return np.frombuffer(b"".join(keys), dtype=KEY_DTYPE)


def make_folder(folder: Path, what: str = "score cache", place: str = PLACE) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot create the {what} folder: {error.strerror}; choose another with {place}",
            str(folder),
        ) from error
