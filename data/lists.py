"""Rows of several answers to one prompt, read as pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from .schema import RowError


def best_and_worst(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a list of answers as its best and its worst one (``lists_as: best_worst``).

    ``completions`` are answers as text or messages; ``scores`` (higher is better) or ``ranks`` (1 is best) say how good
    each is, and ``rewards`` perhaps what each is worth by several objectives. Of equal ones the first is taken. Scores
    become ``score_chosen`` and ``score_rejected``; ranks are an order only, and become no column.

    Raises:
        RowError: fewer than two answers, no number for each, or all equally good.
    """
    answers = raw["completions"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise RowError("completions must be a list of two answers or more")
    name = "scores" if raw.get("scores") is not None else "ranks"
    numbers = raw.get(name)
    if numbers is None:
        raise RowError("scores (or ranks) is missing beside completions")
    if not isinstance(numbers, list) or not all(_is_number(one) for one in numbers):
        raise RowError(f"{name} must be a list of finite numbers")
    if len(numbers) != len(answers):
        raise RowError(f"completions has {len(answers)} answers and {name} {len(numbers)} numbers")
    rewards = raw.get("rewards")
    if rewards is not None and (not isinstance(rewards, list) or len(rewards) != len(answers)):
        raise RowError(f"rewards must be a list with an entry for each of the {len(answers)} completions")
    if min(numbers) == max(numbers):
        raise RowError(f"all {len(answers)} {name} are {numbers[0]:g}: no answer is better than another")
    places = {"chosen": numbers.index(max(numbers)), "rejected": numbers.index(min(numbers))}
    if name == "ranks":
        places = {"chosen": places["rejected"], "rejected": places["chosen"]}
    row = {field: value for field, value in raw.items() if field not in ("completions", "scores", "ranks", "rewards")}
    for side, place in places.items():
        row[side] = answers[place]
        if name == "scores":
            row[f"score_{side}"] = numbers[place]
        if rewards is not None:
            row[f"rewards_{side}"] = rewards[place]
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
