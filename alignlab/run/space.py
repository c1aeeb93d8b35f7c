"""What a search draws: numbers between two ends, whole numbers in steps, or choices; checked by their dotted keys."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.config import Values, unknown_key

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANGE, _CHOICES = ("low", "high", "log", "step"), ("choices",)


@dataclass(frozen=True)
class Space:
    """What is drawn, by dotted key.

    Attributes:
        distributions: as Optuna has them; a choice is its JSON text there, since Optuna holds no blocks.
        choices: of keys with choices, each value by its text.
    """

    distributions: Mapping[str, BaseDistribution]
    choices: Mapping[str, Mapping[str, Any]]

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """Returns what was drawn as a config takes it."""
        return {key: self.choices[key][value] if key in self.choices else value for key, value in drawn.items()}

    def corners(self) -> list[tuple[str, Values]]:
        """Returns a config's values for every end of every range and every choice, the other keys at their first."""
        ends: dict[str, list[Any]] = {}
        for key, one in self.distributions.items():
            found = vars(one)
            ends[key] = list(self.choices[key].values()) if key in self.choices else [found["low"], found["high"]]
        first = {key: values[0] for key, values in ends.items()}
        return [(key, {**first, key: value}) for key, values in ends.items() for value in values]


def read_space(asked: Mapping[str, Any], where: str) -> Space:
    """Returns the space that a block of a search's file says.

    Raises:
        ValueError: an unknown key, no choices, or ends that Optuna cannot draw between; names the dotted key.
    """
    choices: dict[str, Mapping[str, Any]] = {}
    distributions: dict[str, BaseDistribution] = {}
    for key, one in asked.items():
        name = f"{where}.{key}"
        if not isinstance(one, Mapping):
            raise ValueError(f"{name}: expected {{low: .., high: ..}} or {{choices: [..]}}, found {one!r}")
        allowed = _CHOICES if "choices" in one else _RANGE
        for option in one:
            if option not in allowed:
                raise unknown_key(f"{name}.{option}", allowed)
        if "choices" in one:
            choices[key] = _choices(f"{name}.choices", one["choices"])
        distributions[key] = _of_choices(choices[key]) if key in choices else _range(name, one)
    return Space(distributions, choices)


def _choices(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name}: expected a list of values, found {values!r}")
    found = {json.dumps(value): value for value in values}
    if len(found) < len(values):
        raise ValueError(f"{name}: a value stands there twice: {values!r}")
    return found


def _of_choices(choices: Mapping[str, Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(list(choices))


def _range(name: str, asked: Mapping[str, Any]) -> BaseDistribution:
    """Returns whole numbers where both ends are whole, else numbers; with steps from the low end if there is one."""
    from optuna.distributions import FloatDistribution, IntDistribution

    for end in ("low", "high"):
        if not _is_number(asked.get(end)):
            raise ValueError(f"{name}.{end}: expected a number, found {asked.get(end)!r}")
    if asked["low"] > asked["high"]:
        raise ValueError(f"{name}: expected low <= high, found {asked['low']} and {asked['high']}")
    whole = isinstance(asked["low"], int) and isinstance(asked["high"], int)
    log, step = asked.get("log", False), asked.get("step", 1 if whole else None)
    if not isinstance(log, bool):
        raise ValueError(f"{name}.log: expected true or false, found {log!r}")
    if not (step is None or _is_number(step)) or (whole and not isinstance(step, int)):
        raise ValueError(f"{name}.step: expected a {'whole ' if whole else ''}number, found {step!r}")
    kind: Any = IntDistribution if whole else FloatDistribution
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna would move an end that no step reaches
            result: BaseDistribution = kind(asked["low"], asked["high"], log=log, step=step)
    except (ValueError, Warning) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
