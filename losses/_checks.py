"""Checks of options: each returns the value, or raises an error that begins with the option's name."""

from __future__ import annotations

from ._base import Facts


def check_positive(name: str, value: float) -> float:
    """Returns ``value`` if it is finite and > 0, else raises ValueError naming the option."""
    if not (0 < value < float("inf")):
        raise ValueError(f"{name} must be a finite number > 0, found {value!r}")
    return value


def check_non_negative(name: str, value: float) -> float:
    """Returns ``value`` if it is finite and >= 0, else raises ValueError naming the option."""
    if not (0 <= value < float("inf")):
        raise ValueError(f"{name} must be a finite number >= 0, found {value!r}")
    return value


def check_interval(name: str, value: float, low: float, high: float, *, closed: bool = False) -> float:
    """Returns ``value`` if low <= value < high (<= high where ``closed``), else raises ValueError naming the option."""
    if not (low <= value < high or (closed and value == high)):
        raise ValueError(f"{name} must be in [{low}, {high}{']' if closed else ')'}, found {value!r}")
    return value


def check_range(facts: Facts, column: str, low: float, high: float, why: str) -> None:
    """Raises ValueError, which ends with ``why``, where numbers in a column of the rows leave [low, high]."""
    least, largest = facts.ranges.get(column, (low, high))
    if least < low or largest > high:
        raise ValueError(f"{column} of the rows must be in [{low}, {high}], found {least:g} to {largest:g}: {why}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Returns ``value`` if it is one of ``allowed``, else raises ValueError naming the option."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    return value


def check_count(name: str, value: int) -> int:
    """Returns ``value`` if it is a whole number >= 1, else raises ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, found {value!r}")
    return value
