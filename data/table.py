"""Encoded rows to Arrow columns, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .columns import NUMBERS, PAIR_REWARDS
from .keys import KEY, KEYS, prompt_key
from .lists import pair_columns
from .options import DataOptions
from .pack import IDS, MASK, Packed, column
from .schema import DataReport, Row

SCORES = pa.list_(pa.float64())
OPTIONAL = {
    "group": pa.string(),
    **dict.fromkeys(NUMBERS, pa.float64()),
    **dict.fromkeys((*PAIR_REWARDS, "rewards"), pa.list_(pa.float64())),
}
OF_LISTS = {"group": pa.string(), "weight": pa.float64(), "rewards": pa.list_(pa.list_(pa.float64()))}
Unpaired = tuple[Row, Packed, Sequence[tuple[int, int]] | None]


def optional_types(kind: str) -> dict[str, pa.DataType]:
    """Returns the columns that rows may have beside their tokens, for a loss of that kind of rows."""
    return OF_LISTS if kind == "lists" else OPTIONAL


def encoded_schema(options: DataOptions) -> pa.Schema:
    """Returns the columns of token ids, masks and keys that rows have by themselves, before any other row is known."""
    pairs = options.kind == "pairs"
    fields = [("prompt_ids", IDS), ("prompt_key", KEY)]
    if options.kind == "lists":
        fields += [("completions_ids", pa.list_(IDS)), ("completions_mask", pa.list_(MASK)), ("completions_key", KEYS)]
        return pa.schema([*fields, ("scores", SCORES)])
    names = ["chosen", "rejected"] + (["gold"] if options.gold else []) if pairs else ["completion"]
    for name in names:
        fields += [(f"{name}_ids", IDS), (f"{name}_mask", MASK), (f"{name}_key", KEY)]
    return pa.schema(fields if pairs else [*fields, ("label", pa.bool_())])


def draft_schema(options: DataOptions) -> pa.Schema:
    """Returns the columns of rows whose neighbours are not known yet: with every optional column, null where absent."""
    pair = [pa.field("pair", pa.int64())] if options.kind == "labelled" else []
    others = [pa.field(name, kind) for name, kind in optional_types(options.kind).items()]
    return pa.schema([*encoded_schema(options), *pair, pa.field("source", pa.string()), *others])


def encoded_batch(schema: pa.Schema, rows: Sequence[Unpaired]) -> pa.RecordBatch:
    """Turns units into Arrow memory, a tenth of what Python lists take.

    A pair becomes one row for a loss of pairs, and two rows, desirable and not, for a labelled loss. A list becomes one
    row for a loss of lists, and else the pairs that are named beside it.
    """
    values = [one for unit in rows for one in _rows(*unit, schema)]
    return pa.RecordBatch.from_arrays([column([one[f.name] for one in values], f.type) for f in schema], schema=schema)


def _rows(
    row: Row, encoded: Packed, pairs: Sequence[tuple[int, int]] | None, schema: pa.Schema
) -> list[dict[str, Any]]:
    prompt = {"prompt_ids": encoded.prompt, "prompt_key": prompt_key(encoded.prompt)}
    sides: dict[str, dict[str, Any]] = {}
    for name, one in encoded.completions.items():
        sides[name] = {"ids": one.ids, "mask": one.mask, "key": encoded.keys[name]}
    if "scores" in schema.names:
        ids, masks, keys = ([side[part] for side in sides.values()] for part in ("ids", "mask", "key"))
        several = {"completions_ids": ids, "completions_mask": masks, "completions_key": b"".join(keys)}
        return [prompt | several | {"scores": row.scores}]
    names = list(sides)
    named = [("chosen", "rejected")] if pairs is None else [(names[one], names[other]) for one, other in pairs]
    if "label" not in schema.names:
        gold = {"gold": sides["gold"]} if "gold" in sides else {}
        pairs_of_sides = ({"chosen": sides[one], "rejected": sides[other]} | gold for one, other in named)
        return [
            prompt | {f"{name}_{part}": value for name, side in pair.items() for part, value in side.items()}
            for pair in pairs_of_sides
        ]
    split: list[tuple[str, bool | None]] = [("completion", row.label)]
    if row.label is None:
        split = [half for one, other in named for half in ((one, True), (other, False))]
    return [
        prompt | {f"completion_{part}": value for part, value in sides[name].items()} | {"label": label}
        for name, label in split
    ]


def optional_columns(
    columns: dict[str, Any], pairs: Sequence[tuple[int, int]] | None, split: bool
) -> list[dict[str, Any]]:
    """Returns the optional columns of each row that a unit becomes.

    Args:
        columns: those of the unit. pairs: of a list that is read as pairs.
        split: whether pairs become two rows, their halves.
    """
    if pairs is not None:
        several = [pair_columns(columns, *pair) for pair in pairs]
        return [one for pair in several for one in optional_columns(pair, None, split)]
    if not split:
        return [columns]
    halves = []
    for name in ("chosen", "rejected"):
        half = {key: value for key, value in columns.items() if key not in PAIR_REWARDS}
        if f"rewards_{name}" in columns:
            half["rewards"] = columns[f"rewards_{name}"]
        halves.append(half)
    return halves


def optional_array(name: str, kind: pa.DataType, rows: Sequence[dict[str, Any]]) -> pa.Array:
    """Returns an optional column of rows, null where a row has none."""
    if not any(name in row for row in rows):
        return pa.nulls(len(rows), kind)
    return pa.array([row.get(name) for row in rows], kind)


def kept_columns(have: dict[str, int], rows: int, report: DataReport) -> list[str]:
    """Returns the optional columns that a set keeps, given how many of its rows have each."""
    kept = []
    for name in have:
        if have[name] == 0:
            continue
        if have[name] < rows and name == "weight":
            report.note(f"{rows - have[name]} of {rows} rows have no weight and count with 1.0")
        elif have[name] < rows:  # required columns never come here: a row without one is a bad row
            report.note(f"only {have[name]} of {rows} rows have {name}, which the loss does not need: it is left out")
            continue
        kept.append(name)
    return kept
