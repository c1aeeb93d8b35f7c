"""What tells data from other data: a hash of the files that sources name, and one of the rows made of them."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .sources import open_sources

_ROWS = 1000  # hashed at a time
_BLOCK = 1 << 20  # bytes read at a time


def sources_digest(source: Any) -> str:
    """Returns a hash over every byte of the files that a source of a config names, in the order of their paths.

    Data from the hub is known by its name alone.

    Args:
        source: paths, hub ids and mixtures.
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
            with file.open("rb") as opened:
                while block := opened.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


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
