"""Rows in chunks as they come from a file, cheap to hand to another process, parsed where they are worked on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from .schema import Broken

Located = tuple[str, dict[str, Any] | Broken]
"""``("file.jsonl:12", row)``: line of the file, 1-based (row of the table for parquet and arrow), and the row."""


@dataclass(kw_only=True)
class Chunk:
    """Some rows of one source, in order.

    Attributes:
        source: name of the source, for the report.
        columns: ``{our name: their name}``.
        format: the public set that the rows are read as; None recognises it by its fields.
    """

    source: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None

    def rows(self) -> list[Located]:
        """Returns every row with its place; a row that cannot be read comes as ``Broken``."""
        if not self.columns:
            return self._parsed()
        renamed = (
            (place, _renamed(row, self.columns) if isinstance(row, dict) else row) for place, row in self._parsed()
        )
        return list(renamed)

    def _parsed(self) -> list[Located]:
        raise NotImplementedError


@dataclass
class Parsed(Chunk):
    """Rows that have been parsed already."""

    located: list[Located]

    def _parsed(self) -> list[Located]:
        return self.located


@dataclass
class Lines(Chunk):
    """Lines of a jsonl file that are not blank, each with its number."""

    path: str
    numbers: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    def add(self, number: int, line: bytes) -> None:
        self.numbers.append(number)
        self.lines.append(line)

    def _parsed(self) -> list[Located]:
        numbered = zip(self.numbers, self.lines, strict=True)
        return [(f"{self.path}:{number}", _json_line(line)) for number, line in numbered]


@dataclass
class TableRows(Chunk):
    """Rows of a table, the first of which has the number ``first``."""

    path: str
    first: int
    batch: pa.RecordBatch

    def _parsed(self) -> list[Located]:
        return [(f"{self.path}:{number}", row) for number, row in enumerate(self.batch.to_pylist(), self.first)]


def chunked(rows: Iterable[Located], size: int) -> Iterator[Chunk]:
    """Yields parsed rows in chunks."""
    rows = iter(rows)
    while located := list(islice(rows, size)):
        yield Parsed(located)


def given(row: Any) -> dict[str, Any] | Broken:
    """Returns a row that is an object with named fields as it is, and anything else as ``Broken``."""
    if isinstance(row, Mapping):
        return dict(row)
    return Broken(f"a row must be an object with named fields, found {type(row).__name__}", repr(row)[:1000])


class DuplicateKey(ValueError):
    """An object of JSON has a key twice, of which a parser would take the last and drop the other unsaid."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of a JSON text's pairs; raises ``DuplicateKey`` where a key stands twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise DuplicateKey(f"the key {twice!r} stands twice in one object")
    return made


_decode = json.JSONDecoder(object_pairs_hook=once).decode  # json.loads would make a decoder for every line


def _parse(text: str) -> Any:
    return json.loads(text) if text.startswith("\ufeff") else _decode(text)  # which says that a mark is out of place


def _json_line(line: bytes) -> dict[str, Any] | Broken:
    try:
        return given(_parse(line.decode("utf-8").rstrip("\r\n")))
    except DuplicateKey as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        reason = f"broken JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        reason = "broken JSON: nested too deeply"
    except ValueError:
        reason = "broken JSON: an integer of more than 4,300 digits"
    return Broken(reason, line.decode("utf-8", "backslashreplace").rstrip("\n"))


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
