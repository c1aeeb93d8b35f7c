"""What tells data from other data: a hash of the files that sources name, and one of the rows made of them."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .sources import open_sources

_ROWS = 1000  # hashed at a time
SETTLED = 2.0  # seconds after its last change from which a file's time of change tells any later one


def sources_digest(source: Any, memory: Path) -> str:
    """Returns a hash over every byte of the files that a source of a config names, in the order of their paths.

    Data from the hub is known by its name alone.

    Args:
        source: paths, hub ids and mixtures.
        memory: folder that remembers the hashes of files, so that none is read twice.
    """
    digest = blake2b(digest_size=16)
    for one in open_sources(source):
        path = Path(one.path).expanduser()
        digest.update(f"{one.weight} {one.split} {one.name} {dict(one.columns)}".encode())
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            if not file.is_file():
                digest.update(one.path.encode())
                continue
            digest.update(file_hash(file, memory))
    return digest.hexdigest()


def file_hash(path: Path, memory: Path) -> bytes:
    """Returns the hash of a file's bytes, which are read once for each state that the file is seen in.

    Args:
        memory: folder that remembers the hash under the file's path, size and times.
    """
    path = path.resolve()
    state = path.stat()
    seen = (str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    note = memory / hashlib.blake2b(repr(seen).encode(), digest_size=16).hexdigest()
    try:
        known = bytes.fromhex(note.read_text())
        if len(known) == 32:
            return known
    except (OSError, ValueError):
        pass
    began = time.time()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if path.stat().st_mtime_ns == state.st_mtime_ns and began - state.st_mtime > SETTLED:
        aside = note.with_suffix(f".{time.time_ns()}")
        with suppress(OSError):  # a read-only cache: the file is read again
            memory.mkdir(parents=True, exist_ok=True)
            aside.write_text(found.hex())
            aside.rename(note)
    return found


def rows_digest(dataset: Any) -> str:
    """Returns a hash over a tokenised dataset: every column of every row in order, but for where the rows came from.

    Token ids, masks and optional columns count; how Arrow cuts the table into chunks does not. Ids and masks count by
    the keys that a set has of them: a million rows are told apart without their tokens being read.
    """
    digest = blake2b(str(len(dataset)).encode(), digest_size=16)
    keyed = {name.removesuffix("_key") for name in dataset.column_names if name.endswith("_key")}
    tokens = {f"{field}_{part}" for field in keyed for part in ("ids", "mask")}
    names = sorted(name for name in dataset.column_names if name != "source" and name not in tokens)
    tables = dataset.select_columns(names).with_format("arrow")
    for start in range(0, len(dataset), _ROWS):
        table = tables[start : start + _ROWS]
        for name in names:
            digest.update(f"{name} {table.schema.field(name).type}".encode())
            _add(digest, table.column(name))
    return digest.hexdigest()


def _add(digest: Any, column: pa.ChunkedArray) -> None:
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        digest.update(repr(column.to_pylist()).encode())
        return
    for part in (pc.list_value_length(column), pc.list_flatten(column)):
        digest.update(part.to_numpy().tobytes())
