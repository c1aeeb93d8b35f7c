"""Optional columns of a row: group, weight, margin, scores and rewards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from .options import DataOptions
from .schema import RowError

Shape = Literal["pair", "labelled", "list"]
NUMBERS = ("weight", "margin", "score_chosen", "score_rejected")
PAIR_REWARDS = ("rewards_chosen", "rewards_rejected")


def parse_columns(raw: Mapping[str, Any], shape: Shape, options: DataOptions) -> dict[str, Any]:
    """Reads and checks the optional columns; named rewards stay mappings, to be ordered once their names are known.

    Raises:
        RowError: a required column is missing, a number is NaN or infinite, a weight negative, a type wrong.
    """
    found: dict[str, Any] = {}
    if raw.get("group") is not None:
        found["group"] = _group(raw["group"])
    for name in NUMBERS:
        if raw.get(name) is not None:
            found[name] = number(raw[name], name)
    if found.get("weight", 1.0) < 0:
        raise RowError(f"weight is {found['weight']}; it must be 0 or more")
    for name in PAIR_REWARDS if shape == "pair" else ("rewards",):
        if raw.get(name) is None:
            continue
        if shape == "list":
            found[name] = [_rewards(one, f"{name}[{index}]", options) for index, one in enumerate(raw[name])]
        else:
            found[name] = _rewards(raw[name], name, options)
    if shape == "list" and "scores" in raw:
        found["scores"] = list(raw["scores"])
    _require(found, shape, options)
    return found


def _require(found: dict[str, Any], shape: Shape, options: DataOptions) -> None:
    rewards = PAIR_REWARDS if shape == "pair" else ("rewards",)
    wanted = [column for column in options.columns if column != "rewards"]
    if shape == "list":  # the scores of its pairs are those of the list
        wanted = ["scores" if column.startswith("score_") else column for column in wanted]
    if "rewards" in options.columns or options.rewards:
        wanted += rewards
    for column in wanted:
        if column not in found:
            raise RowError(f"{column} is missing, and the loss needs it")
    for column in rewards if options.rewards else ():
        for one in found[column] if shape == "list" else [found[column]]:
            if len(one) != options.rewards:
                raise RowError(f"{column} has {len(one)} rewards, the loss needs {options.rewards}")


def _group(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"group is of type {type(value).__name__}; allowed are text and whole numbers")
    if not str(value).strip():
        raise RowError("group is empty")
    return str(value)


def number(value: Any, field: str) -> float:
    """Returns a finite number.

    Raises:
        RowError: it is none, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RowError(f"{field} is {value!r} of type {type(value).__name__}; it must be a number")
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise RowError(f"{field} is {value}; it must be a finite number")
    return found


def _rewards(value: Any, field: str, options: DataOptions) -> list[float] | dict[str, float]:
    if isinstance(value, Mapping):
        named = {name: number(item, f"{field}.{name}") for name, item in value.items() if item is not None}
        if options.reward_names and set(named) != set(options.reward_names):
            raise RowError(f"{field} names {', '.join(named)}; the run names {', '.join(options.reward_names)}")
        return named
    if not isinstance(value, list) or not value:
        raise RowError(f"{field} must be a list of numbers or a mapping from objective to number, found {value!r}")
    return [number(item, f"{field}[{index}]") for index, item in enumerate(value)]


def value_counts(dataset: Any, name: str) -> dict[Any, int]:
    """Returns how many rows of a tokenised set have each value of a column, without a Python object for each row."""
    counts: Counter[Any] = Counter()
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=100_000):
        for one in table[name].value_counts().to_pylist():
            counts[one["values"]] += one["counts"]
    return dict(counts)


def value_ranges(sets: Iterable[Any], names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Returns the least and the largest number of columns over tokenised sets; a list counts with each of its numbers.

    ``score_gap`` is that of ``score_chosen - score_rejected`` of each pair, where both are asked for. A column that no
    set has is left out.
    """
    asked, found = set(names), dict[str, tuple[float, float]]()
    for dataset in sets:
        if not (read := sorted(asked & set(dataset.column_names))):
            continue
        for table in dataset.select_columns(read).with_format("arrow").iter(batch_size=100_000):
            values = {name: _flat(table[name]) for name in read}
            if values.keys() >= {"score_chosen", "score_rejected"}:
                values["score_gap"] = pc.subtract(values["score_chosen"], values["score_rejected"])
            for name, column in values.items():
                ends, known = pc.min_max(column).as_py(), found.get(name, (math.inf, -math.inf))
                if ends["min"] is not None:
                    found[name] = (min(known[0], ends["min"]), max(known[1], ends["max"]))
    return found


def _flat(column: Any) -> Any:
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return column.combine_chunks().flatten() if nested else column


class RewardOrder:
    """Turns named rewards into lists, in one order for all rows."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names

    def apply(self, columns: dict[str, Any]) -> None:
        """Replaces mappings by lists, in place.

        Raises:
            RowError: a row names other objectives than the rows before it.
        """
        for column in (*PAIR_REWARDS, "rewards"):
            found = columns.get(column)
            if isinstance(found, dict):
                columns[column] = self._ordered(found, column)
            elif found and any(isinstance(one, dict) for one in found):
                columns[column] = [self._ordered(one, column) if isinstance(one, dict) else one for one in found]

    def _ordered(self, named: dict[str, float], column: str) -> list[float]:
        self.names = self.names or tuple(sorted(named))
        if set(named) != set(self.names):
            raise RowError(f"{column} names {', '.join(named)}; earlier rows named {', '.join(self.names)}")
        return [named[name] for name in self.names]
