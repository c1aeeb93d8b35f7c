"""The files that rows are kept in, read chunk by chunk."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .chunks import Chunk, DuplicateKey, Lines, Located, TableRows, chunked, given, once
from .schema import Broken

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")


def read_file(path: Path, size: int) -> Iterator[Chunk]:
    """Yields the rows of one file in chunks, by its suffix.

    Raises:
        ValueError: the suffix is unknown or the file as a whole cannot be read (damaged gzip, parquet, json).
    """
    name = path.name.removesuffix(".gz")
    reader = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }.get(Path(name).suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown kind of file; allowed are {', '.join(SUFFIXES)}, and .gz of the text ones")
    try:
        yield from reader(path, size)
    except (OSError, EOFError, zlib.error) as error:  # EOFError: a gzip file that was cut off
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_jsonl(path: Path, size: int) -> Iterator[Chunk]:
    with _open(path) as file:
        lines = Lines(str(path))
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark some editors write
            if line.strip():
                lines.add(number, line)
            if len(lines.lines) == size:
                yield lines
                lines = Lines(str(path))
        if lines.lines:
            yield lines


def _read_json(path: Path, size: int) -> Iterator[Chunk]:
    with _open(path) as file:
        content = file.read()
    if not content.strip(b"\xef\xbb\xbf \t\r\n"):
        return  # no row, which is said of all sources together
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):  # many .json files are jsonl
        _refuse_wrapped(path, content)
        yield from _read_jsonl(path, size)
        return
    try:
        rows = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # too long an integer is a plain ValueError
        raise ValueError(f"{path}: not a JSON list in UTF-8: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON file must hold a list of rows, found {type(rows).__name__}")
    yield from chunked(((f"{path}:{number}", _given(row)) for number, row in enumerate(rows, start=1)), size)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Broken:
    try:
        return once(pairs)
    except DuplicateKey as error:
        return Broken(str(error), repr(pairs)[:1000])


def _given(row: Any) -> dict[str, Any] | Broken:
    """Returns a row of a JSON list, which is broken where anything in it is."""
    return next(_broken_in(row), None) or given(row)


def _broken_in(value: Any) -> Iterator[Broken]:
    if isinstance(value, Broken):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _broken_in(inner)


def _refuse_wrapped(path: Path, content: bytes) -> None:
    """Refuses one object that holds the rows as a list; several objects, one a line, are rows."""
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(whole) <= 3 and len(lists) == 1 and lists[0] not in ("messages", "conversations", "chosen", "rejected"):
        raise ValueError(
            f"{path}: a JSON file holds a list of rows, found an object whose {lists[0]!r} is a list; write that list "
            "alone into the file"
        )


def _read_csv(path: Path, size: int) -> Iterator[Chunk]:
    yield from chunked(_csv_rows(path), size)


def _csv_rows(path: Path) -> Iterator[Located]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(text)
        if not reader.fieldnames:
            raise ValueError(f"{path}: a csv file must open with a line of column names")
        names = list(reader.fieldnames)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: the csv file has the column {', '.join(map(repr, twice))} more than once")
        other = next((one for one in ";\t|" if one in reader.fieldnames[0]), None)
        if len(reader.fieldnames) == 1 and other is not None:
            raise ValueError(f"{path}: columns are separated by {other!r}, and have to be by commas")
        end = reader.line_num
        for row in reader:
            yield f"{path}:{end + 1}", _csv_row(row)  # a quoted field may span lines: name the row's first
            end = reader.line_num


def _csv_row(row: dict[Any, Any]) -> dict[str, Any] | Broken:
    if None in row:
        return Broken(f"{len(row[None])} more fields than there are column names", repr(row))
    values = {name: _csv_value(name, text) for name, text in row.items() if text not in (None, "")}
    for name, text in row.items():
        if text is not None and any("\udc80" <= character <= "\udcff" for character in text):
            return Broken(f"not UTF-8 (in {name})", repr(row))
    return values


def _csv_value(name: str, text: str) -> Any:
    """Cells are text: messages, lists, numbers and labels are written in them as JSON."""
    numeric = name in ("weight", "margin", "score_chosen", "score_rejected") or name.startswith("rewards")
    label = name in ("label", "kto_tag")
    if not (numeric or label or text.startswith(("[{", "{"))):
        return text
    try:
        value = json.loads(text.lower() if label else text)
    except (ValueError, RecursionError):
        return text
    return value if not isinstance(value, str) else text


def _read_parquet(path: Path, size: int) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        yield from _batches(path, file.iter_batches(batch_size=size), size)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as parquet: {error}") from error


def _read_arrow(path: Path, size: int) -> Iterator[Chunk]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        try:
            try:
                batches: Iterable[Any] = pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:  # the other of Arrow's two formats
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from _batches(path, batches, size)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path}: cannot be read as arrow: {error}") from error


def _batches(path: Path, batches: Iterable[Any], size: int) -> Iterator[Chunk]:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), size):
            part = batch.slice(start, size)
            yield TableRows(str(path), number + 1, part)
            number += len(part)


def files_of(folder: Path) -> list[Path]:
    """Returns the data files in a folder, in order of name.

    Raises:
        ValueError: there is none.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in files if Path(file.name.removesuffix(".gz")).suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder}: the folder holds no data file ({', '.join(SUFFIXES)})")
    return files
