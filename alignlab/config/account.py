"""What becomes of each key of another trainer's config on its way to ours."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .parser import Values, block_of

Fate = Literal["kept", "changed", "written out", "no counterpart", "unknown"]
Options = Mapping[str, str]  # our option -> their key
LossRule = tuple[Values, Options]  # what is fixed, and what is read from their keys
HELD_OUT = 200  # rows, where a share is asked for: how many rows there are is not known here


@dataclass(frozen=True)
class Line:
    """One key: as it was found, and what became of it.

    Attributes:
        fate: kept, with name and value; changed, and into what; written out, which was not given there and has another
            default here; no counterpart, and why; unknown to us.
    """

    key: str
    fate: Fate
    text: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.fate}" + (f": {self.text}" if self.text else "")


class Account:
    """The keys of a config that is taken over, each told once, and what was made of them.

    Args:
        given: their keys. defaults: of theirs, for what is read and not given.

    Attributes:
        values: ours. lines: what became of each key.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.given, self.defaults = dict(given), dict(defaults)
        self.left = dict(given)
        self.values: Values = {}
        self.lines: list[Line] = []

    def get(self, key: str) -> Any:
        """Returns the value of a key as it is given, else their default, else None; nothing is told."""
        return self.given.get(key, self.defaults.get(key))

    def put(self, dotted: str, value: Any) -> None:
        """Writes one of our keys."""
        block, last = block_of(self.values, dotted)
        block[last] = value

    def tell(self, key: str, fate: Fate, text: str = "") -> None:
        """Says what became of a key, if it was given; the first word stands."""
        if key in self.left:
            del self.left[key]
            self.lines.append(Line(key, fate, text))

    def keep(self, *keys: str) -> None:
        """Takes keys over as they are."""
        for key in keys:
            if key in self.left:
                self.put(key, self.given[key])
                self.tell(key, "kept")

    def move(self, key: str, dotted: str, value: Any = ..., why: str = "") -> None:
        """Writes a key, or their default of it, under our name; ``value`` where it is another one here."""
        found = self.get(key)
        if found is None:
            self.tell(key, "no counterpart", "null says nothing")
            return
        becomes = found if value is ... else value
        self.put(dotted, becomes)
        shown = f"{dotted}: {shown_value(becomes)}" + (f" ({why})" if why else "")
        if key in self.given:
            self.tell(key, "changed", shown)
        else:
            self.lines.append(Line(key, "written out", f"{shown_value(found)} is the default there; {shown}"))

    def write_out(self, key: str, dotted: str, value: Any, why: str) -> None:
        """Writes what is so there although no key says it."""
        self.put(dotted, value)
        self.lines.append(Line(key, "written out", f"{dotted}: {shown_value(value)} ({why})"))

    def drop(self, why: str, *keys: str) -> None:
        """Says of keys that there is nothing here for them."""
        for key in keys:
            self.tell(key, "no counterpart", why)

    def hold_out(self, key: str) -> None:
        """Takes over how many training rows are held out: from 1 on a number of rows, below it a share of them."""
        share = self.get(key)
        if share:
            if not isinstance(share, (int, float)):
                raise ValueError(f"{key}: expected a number of rows, or a share of them, found {share!r}")
            rows = int(share) if share >= 1 else HELD_OUT
            why = "rows" if share >= 1 else "a number of rows here, where it is a share there: set your own"
            self.move(key, "data.eval_rows", rows, why)
        self.drop("nothing is held out", key)

    def loss(self, rule: LossRule) -> Values:
        """Returns a loss as a rule makes it of their keys, each of which it tells; defaults are written out."""
        fixed, options = rule
        made = dict(fixed)
        for option, key in options.items():
            value = self.get(key)
            if value is None:
                continue
            made[option] = value
            if key in self.given:
                self.tell(key, "changed", f"loss.{option}: {shown_value(value)}")
            elif all(line.key != key for line in self.lines):
                self.lines.append(Line(key, "written out", f"{shown_value(value)} is the default there; loss.{option}"))
        return made


def choose(key: str, found: Any, rules: Mapping[Any, Any], hint: str = "") -> Any:
    """Returns the rule for a value of one of their keys, or raises a ValueError that names those there are."""
    if isinstance(found, Hashable) and found in rules:
        return rules[found]
    allowed = ", ".join(str(one) for one in rules if one)
    raise ValueError(f"{key}: {found!r} has no counterpart here{hint}; what can be taken over: {allowed}")


def sum_of(parts: Iterable[tuple[Values, float]]) -> Values:
    """Returns the weighted sum of losses, or the loss alone where there is one of weight 1."""
    every = [(loss, float(weight)) for loss, weight in parts if weight]
    if len(every) == 1 and every[0][1] == 1.0:
        return every[0][0]
    return {"name": "weighted_sum", "parts": [one for one, _ in every], "weights": [weight for _, weight in every]}


def shown_value(value: Any) -> str:
    """Returns a value as YAML would have it on one line."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown_value, value))}]"
    return words[value] if value is None or isinstance(value, bool) else str(value)
