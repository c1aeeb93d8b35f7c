"""Tokenised rows as an Arrow file: written batch by batch, mapped into memory, never held in it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features
from datasets.table import InMemoryTable, MemoryMappedTable, Table

from .encode import Outcome, Unit
from .keys import keys_of
from .mismatch import mismatched_rows, partners
from .options import DataOptions
from .schema import DataReport
from .table import draft_schema, kept_columns, optional_array, optional_columns, optional_types

BATCH = 1000  # rows of a record batch of the finished file
LET_GO = 50  # record batches after which the pages of the draft that were read are let go, that would count as memory


class Draft(AbstractContextManager["Draft"]):
    """Good rows in the order in which they were read, before it is known which of them are used and what they share."""

    def __init__(self, path: Path, options: DataOptions) -> None:
        self.path, self.options, self.schema = path, options, draft_schema(options)
        self._writer = pa.ipc.new_stream(str(path), self.schema)
        self._optional = optional_types(options.kind)
        self._sizes: list[np.ndarray[Any, Any]] = []
        self._units = self._pairs = 0

    def add(self, outcome: Outcome, kept: list[Unit]) -> None:
        """Writes the units of a chunk that stay."""
        kind, batch = self.options.kind, outcome.batch
        all_sizes = np.array([unit.size(kind) for unit in outcome.units], np.int32)
        if len(kept) < len(outcome.units):
            stay = {unit.number for unit in kept}
            mask = np.array([unit.number in stay for unit in outcome.units], np.bool_)
            batch = batch.filter(pa.array(np.repeat(mask, all_sizes)))
            all_sizes = all_sizes[mask]
        rows = [one for unit in kept for one in optional_columns(unit.columns, unit.pairs, self._is_split(unit))]
        columns = list(batch.columns)
        if kind == "labelled":
            numbers = _pair_numbers(all_sizes) + self._pairs
            born = np.repeat(all_sizes == 1, all_sizes)
            columns.append(pa.array(np.where(born, -1, numbers), pa.int64()))
            self._pairs += sum(unit.count(kind) for unit in kept)
        places = pa.array([unit.place for unit in kept], pa.string())
        columns.append(places.take(pa.array(np.repeat(np.arange(len(kept)), all_sizes))))
        columns += [optional_array(name, kind, rows) for name, kind in self._optional.items()]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        self._sizes.append(all_sizes)
        self._units += len(kept)

    def _is_split(self, unit: Unit) -> bool:
        return self.options.kind == "labelled" and unit.label is None

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def finish(self, units: np.ndarray[Any, Any], report: DataReport, path: Path) -> None:
        """Writes the rows of ``units``, in that order, to ``path``, with the columns that all of them have.

        Raises:
            ValueError: mismatched completions are wanted, and all rows have the same prompt.
        """
        rows, pairs = self._rows_of(units)
        with self.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        drafted = Dataset(InMemoryTable.from_buffer(pa.py_buffer(pages)), fingerprint="draft")
        chosen = drafted if rows is None else drafted.select(rows)
        have = {name: _present(chosen, name) for name in self._optional}
        optional = kept_columns(have, len(chosen), report)
        names = [name for name in self.schema.names if name not in self._optional or name in optional]
        chosen = chosen.select_columns(names)
        partner = None
        if self.options.mismatched:
            partner = partners(*(list(map(bytes, keys_of(chosen, field))) for field in ("prompt", "completion")))
        writer = None
        for number, table in enumerate(_finished(chosen, pairs, partner, self.options), start=1):
            writer = writer or pa.ipc.new_stream(str(path), table.schema)
            writer.write_table(table)
            if number % LET_GO == 0 and hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)
        assert writer is not None, "a set without rows is an error"
        writer.close()

    def _rows_of(self, units: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
        """Returns the rows of units, and the pair that each becomes part of; None where they are those of the draft."""
        if np.array_equal(units, np.arange(self._units)):
            return None, None
        sizes = np.concatenate([np.empty(0, np.int32), *self._sizes]).astype(np.int64)
        first, used = np.cumsum(sizes) - sizes, sizes[units]
        within = np.arange(used.sum()) - np.repeat(np.cumsum(used) - used, used)
        rows = np.repeat(first[units], used) + within
        return rows, _pair_numbers(used) if self.options.kind == "labelled" else None


def _pair_numbers(sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns the pair that each row is half of, given the rows of each unit; a single row has a number of its own."""
    pairs = np.maximum(sizes // 2, 1)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    numbers: np.ndarray[Any, Any] = np.repeat(np.cumsum(pairs) - pairs, sizes) + within // 2
    return numbers


def _finished(
    chosen: Dataset, pairs: np.ndarray[Any, Any] | None, partner: np.ndarray[Any, Any] | None, options: DataOptions
) -> Iterator[pa.Table]:
    """Yields the finished rows, ``BATCH`` at a time, each as one record batch."""
    for start, table in zip(
        range(0, len(chosen), BATCH), chosen.with_format("arrow").iter(batch_size=BATCH), strict=True
    ):
        if pairs is not None:  # a pair that is seen twice is two pairs
            numbers = np.where(table["pair"].to_numpy() < 0, -1, pairs[start : start + BATCH])
            at = table.schema.get_field_index("pair")
            table = table.set_column(at, "pair", pa.array(numbers, pa.int64()))
        if "weight" in table.column_names:
            at = table.schema.get_field_index("weight")
            table = table.set_column(at, "weight", pc.fill_null(table["weight"], 1.0))
        if partner is not None:
            others = chosen.select(partner[start : start + BATCH]).with_format("arrow")[:]
            for name, column in mismatched_rows(table["prompt_ids"], others, options).items():
                table = table.append_column(name, column)
        yield table.replace_schema_metadata(None).combine_chunks()


def _present(dataset: Dataset, name: str) -> int:
    tables = dataset.select_columns([name]).with_format("arrow").iter(batch_size=100_000)
    return sum(len(table) - table[name].null_count for table in tables)


def open_rows(path: Path, fingerprint: str, in_memory: bool = False) -> Dataset:
    """Returns the rows of a finished file, mapped: they are read from the disk when they are asked for."""
    table = InMemoryTable.from_file(str(path)) if in_memory else _mapped(path)
    info = DatasetInfo(features=Features.from_arrow_schema(table.schema))
    return Dataset(table, info=info, fingerprint=fingerprint)


def _mapped(path: Path) -> Table:
    return MemoryMappedTable.from_file(str(path))
