"""A value of an option held against the type that the option is declared with."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .parser import readable_type


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raises a ValueError for a value of another type, which names the key; an int is a float, nothing else is cast."""
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{key}: expected {readable_type(hint)}, found {value!r}") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
