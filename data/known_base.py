"""What a public set's schema is, and how its readers take fields out of a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .schema import Message, RowError

Raw = Mapping[str, Any]


def _no_more(_: Raw) -> bool:
    return True


@dataclass(frozen=True)
class Schema:
    """The fields of one public set, and how a row of it becomes a row of ours.

    Attributes:
        name: what ``format:`` calls it.
        title: what people call it.
        needs: the fields that it is recognised by, all of which a row must have.
        read: a row of the set to a row in one of our own forms (a pure function: rows are read in any process).
        reads: the other fields that ``read`` looks at.
        lacks: fields with which a row is something else.
        fits: what must be true of the values besides, where fields alone do not tell.
        forced: read only where ``format:`` names it, since another schema has the same fields.
    """

    name: str
    title: str
    needs: frozenset[str]
    read: Callable[[Raw], dict[str, Any]]
    reads: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    fits: Callable[[Raw], bool] = _no_more
    forced: bool = False

    def row(self, raw: Raw) -> dict[str, Any]:
        """Returns a row of the set in one of our own forms.

        Raises:
            RowError: a field is missing, or holds what no reader expects there.
        """
        try:
            return self.read(raw)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise RowError(f"a field is not what {self.title} has there ({type(error).__name__}: {error})") from None


def fields(names: str) -> frozenset[str]:
    """Returns the names in a line of them."""
    return frozenset(names.split())


def value(raw: Raw, field: str) -> Any:
    """Returns a field that must be there.

    Raises:
        RowError: it is not, or null.
    """
    if raw.get(field) is None:
        raise RowError(f"{field} is missing")
    return raw[field]


def text(raw: Raw, field: str) -> str:
    """Returns a text that must not be empty.

    Raises:
        RowError: it is missing, empty or no text.
    """
    found = value(raw, field)
    if not isinstance(found, str):
        raise RowError(f"{field} is of type {type(found).__name__}; allowed is text")
    if not found.strip():
        raise RowError(f"{field} is empty")
    return found


def number(raw: Raw, field: str) -> float:
    """Returns a number, which some sets write as text.

    Raises:
        RowError: it is missing or no number.
    """
    found = value(raw, field)
    try:
        if isinstance(found, bool) or not isinstance(found, (Real, str)):
            raise ValueError
        return float(found)
    except (ValueError, OverflowError):
        raise RowError(f"{field} is {found!r}; it must be a number") from None


def items(raw: Raw, field: str) -> list[Any]:
    """Returns a list, or the list that a JSON text spells.

    Raises:
        RowError: it is missing or neither.
    """
    found = value(raw, field)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (json.JSONDecodeError, RecursionError):
            raise RowError(f"{field} is text that is not JSON; it must be a list") from None
    if not isinstance(found, list):
        raise RowError(f"{field} is of type {type(found).__name__}; it must be a list")
    return found


def verdict(found: Any, field: str) -> bool:
    """Returns a yes or no, written as a boolean or as 1 and 0.

    Raises:
        RowError: it is neither.
    """
    if found not in (0, 1):
        raise RowError(f"{field} is {found!r}; allowed are true and false")
    return bool(found)


def one_of(raw: Raw, field: str, allowed: Sequence[Any]) -> int:
    """Returns the place of a field's value among those that are allowed.

    Raises:
        RowError: it is missing or another one.
    """
    found = value(raw, field)
    if isinstance(found, bool) or found not in allowed:
        raise RowError(f"{field} is {found!r}; allowed are {', '.join(map(repr, allowed))}")
    return allowed.index(found)


def asked(question: str, system: Any = None) -> list[Message]:
    """Returns a question as a conversation, behind the system's message where there is one."""
    opening = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*opening, {"role": "user", "content": question}]


def decided(first: Any, second: Any, second_wins: bool, **columns: tuple[Any, Any]) -> dict[str, Any]:
    """Returns two answers, and what is known of each, as chosen and rejected.

    Args:
        first, second: the answers.
        second_wins: which of them is better.
        columns: by the column's first part (``score``): its value for each; left out unless both have one.
    """
    order = (second, first) if second_wins else (first, second)
    row: dict[str, Any] = dict(zip(("chosen", "rejected"), order, strict=True))
    for name, values in columns.items():
        if None not in values:
            better, worse = reversed(values) if second_wins else values
            row |= {f"{name}_chosen": better, f"{name}_rejected": worse}
    return row


def optional(raw: Raw, **names: str) -> dict[str, Any]:
    """Returns columns that a row may have: ours on the left, the set's name on the right."""
    return {ours: raw[theirs] for ours, theirs in names.items() if raw.get(theirs) not in (None, "")}


def optional_number(raw: Raw, field: str) -> float | None:
    """Returns a number, or None where the field is missing or null.

    Raises:
        RowError: it is there, and no number.
    """
    return None if raw.get(field) is None else number(raw, field)
