"""Encoded rows to Arrow columns, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from .columns import NUMBERS, PAIR_REWARDS
from .keys import KEY, content_key, prompt_key, row_key
from .options import DataOptions
from .schema import DataReport, Row
from .tokenise import Encoded

IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.bool_())
OPTIONAL = {
    "group": pa.string(),
    **dict.fromkeys(NUMBERS, pa.float64()),
    **dict.fromkeys((*PAIR_REWARDS, "rewards"), pa.list_(pa.float64())),
}


class TableBuilder:
    """Collects units (a pair, or a labelled row) and turns them into one Arrow table.

    A pair becomes one row for a loss of pairs, and two rows, desirable and not, for a labelled loss.
    """

    def __init__(self, options: DataOptions) -> None:
        self.pairs = options.kind == "pairs"
        names = ["chosen", "rejected"] + (["gold"] if options.gold else []) if self.pairs else ["completion"]
        fields = [("prompt_ids", IDS), ("prompt_key", KEY)]
        for name in names:
            fields += [(f"{name}_ids", IDS), (f"{name}_mask", MASK), (f"{name}_key", KEY)]
        if not self.pairs:
            fields += [("label", pa.bool_()), ("pair", pa.int64())]
        self.schema = pa.schema([*fields, ("source", pa.string())])
        self.batches: list[pa.RecordBatch] = []
        self.rows: list[dict[str, Any]] = []
        self.optional: list[dict[str, Any]] = []
        self.first_row = [0]  # of each unit; one more at the end

    def __len__(self) -> int:
        return len(self.first_row) - 1

    def add(self, encoded: Encoded, row: Row, place: str) -> bytes:
        """Adds one unit; returns the key of its content."""
        keys = {name: content_key(encoded.prompt, one.ids, one.mask) for name, one in encoded.completions.items()}
        if self.pairs or not row.is_pair:
            labels = {} if self.pairs else {"label": row.label, "pair": -1}
            self._add({name: name for name in encoded.completions}, encoded, keys, labels | {"source": place})
            self.optional.append(row.columns)
        else:
            for name in ("chosen", "rejected"):
                labels = {"label": name == "chosen", "pair": len(self)}
                self._add({"completion": name}, encoded, keys, labels | {"source": place})
                half = {key: value for key, value in row.columns.items() if key not in PAIR_REWARDS}
                if f"rewards_{name}" in row.columns:
                    half["rewards"] = row.columns[f"rewards_{name}"]
                self.optional.append(half)
        self.first_row.append(len(self.optional))
        return row_key(keys)

    def _add(self, names: dict[str, str], encoded: Encoded, keys: dict[str, bytes], others: dict[str, Any]) -> None:
        values = {"prompt_ids": encoded.prompt, "prompt_key": prompt_key(encoded.prompt), **others}
        for ours, theirs in names.items():
            values[f"{ours}_ids"] = encoded.completions[theirs].ids
            values[f"{ours}_mask"] = encoded.completions[theirs].mask
            values[f"{ours}_key"] = keys[theirs]
        self.rows.append(values)

    def flush(self) -> None:
        """Turns the rows added since the last call into Arrow memory, a tenth of what Python lists take."""
        if self.rows:
            arrays = [pa.array([row[item.name] for row in self.rows], item.type) for item in self.schema]
            self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
            self.rows = []

    def table(self, units: np.ndarray, report: DataReport) -> pa.Table:
        """Returns the rows of ``units``, in that order, with the optional columns that they have."""
        table = pa.Table.from_batches(self.batches, self.schema)
        if not np.array_equal(units, np.arange(len(self))):
            first = np.asarray(self.first_row)
            sizes = np.diff(first)[units]
            within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            rows = np.repeat(first[units], sizes) + within
            table = table.take(pa.array(rows))
            optional = [self.optional[row] for row in rows]
            if not self.pairs:  # a pair that is seen twice is two pairs
                numbers = np.repeat(np.arange(len(units)), sizes)
                born = np.asarray(table["pair"]) < 0
                at = table.schema.get_field_index("pair")
                table = table.set_column(at, "pair", pa.array(np.where(born, -1, numbers), pa.int64()))
        else:
            optional = self.optional
        return _with_optional(table, optional, report)


def _with_optional(table: pa.Table, rows: list[dict[str, Any]], report: DataReport) -> pa.Table:
    for name, kind in OPTIONAL.items():
        have = sum(name in row for row in rows)
        if have == 0:
            continue
        if have < len(rows) and name == "weight":
            report.note(f"{len(rows) - have} of {len(rows)} rows have no weight and count with 1.0")
        elif have < len(rows):  # required columns never come here: a row without one is a bad row
            report.note(f"only {have} of {len(rows)} rows have {name}, which the loss does not need: it is left out")
            continue
        table = table.append_column(name, pa.array([row.get(name, 1.0) for row in rows], kind))
    return table
