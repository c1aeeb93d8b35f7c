"""Encoded rows to Arrow columns, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .columns import NUMBERS, PAIR_REWARDS
from .keys import KEY, prompt_key
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


def encoded_schema(options: DataOptions) -> pa.Schema:
    """Returns the columns of token ids, masks and keys that rows have by themselves, before any other row is known."""
    pairs = options.kind == "pairs"
    names = ["chosen", "rejected"] + (["gold"] if options.gold else []) if pairs else ["completion"]
    fields = [("prompt_ids", IDS), ("prompt_key", KEY)]
    for name in names:
        fields += [(f"{name}_ids", IDS), (f"{name}_mask", MASK), (f"{name}_key", KEY)]
    return pa.schema(fields if pairs else [*fields, ("label", pa.bool_())])


def draft_schema(options: DataOptions) -> pa.Schema:
    """Returns the columns of rows whose neighbours are not known yet: with every optional column, null where absent."""
    pair = [] if options.kind == "pairs" else [pa.field("pair", pa.int64())]
    others = [pa.field(name, kind) for name, kind in OPTIONAL.items()]
    return pa.schema([*encoded_schema(options), *pair, pa.field("source", pa.string()), *others])


def encoded_batch(schema: pa.Schema, rows: Sequence[tuple[Row, Encoded]]) -> pa.RecordBatch:
    """Turns units into Arrow memory, a tenth of what Python lists take.

    A pair becomes one row for a loss of pairs, and two rows, desirable and not, for a labelled loss.
    """
    values = [one for row, encoded in rows for one in _rows(row, encoded, labelled="label" in schema.names)]
    return pa.RecordBatch.from_arrays(
        [pa.array([one[f.name] for one in values], f.type) for f in schema], schema=schema
    )


def _rows(row: Row, encoded: Encoded, labelled: bool) -> list[dict[str, Any]]:
    prompt = {"prompt_ids": encoded.prompt, "prompt_key": prompt_key(encoded.prompt)}
    sides: dict[str, dict[str, Any]] = {}
    for name, one in encoded.completions.items():
        sides[name] = {"ids": one.ids, "mask": one.mask, "key": encoded.keys[name]}
    if not labelled:
        return [prompt | {f"{name}_{part}": value for name, side in sides.items() for part, value in side.items()}]
    split = [("chosen", True), ("rejected", False)] if row.is_pair else [("completion", row.label)]
    return [
        prompt | {f"completion_{part}": value for part, value in sides[name].items()} | {"label": label}
        for name, label in split
    ]


def optional_columns(columns: dict[str, Any], split: bool) -> list[dict[str, Any]]:
    """Returns the optional columns of each row that a unit becomes: two where a pair is ``split`` into its halves."""
    if not split:
        return [columns]
    halves = []
    for name in ("chosen", "rejected"):
        half = {key: value for key, value in columns.items() if key not in PAIR_REWARDS}
        if f"rewards_{name}" in columns:
            half["rewards"] = columns[f"rewards_{name}"]
        halves.append(half)
    return halves


def optional_array(name: str, rows: Sequence[dict[str, Any]]) -> pa.Array:
    """Returns an optional column of rows, null where a row has none."""
    if not any(name in row for row in rows):
        return pa.nulls(len(rows), OPTIONAL[name])
    return pa.array([row.get(name) for row in rows], OPTIONAL[name])


def kept_columns(have: dict[str, int], rows: int, report: DataReport) -> list[str]:
    """Returns the optional columns that a set keeps, given how many of its rows have each."""
    kept = []
    for name in OPTIONAL:
        if have[name] == 0:
            continue
        if have[name] < rows and name == "weight":
            report.note(f"{rows - have[name]} of {rows} rows have no weight and count with 1.0")
        elif have[name] < rows:  # required columns never come here: a row without one is a bad row
            report.note(f"only {have[name]} of {rows} rows have {name}, which the loss does not need: it is left out")
            continue
        kept.append(name)
    return kept
