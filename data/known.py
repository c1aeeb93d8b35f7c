"""The public preference sets that are known, recognised by their fields or named by `format:`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from .known_base import Raw, Schema
from .known_choices import CHOICES
from .known_pairs import PAIRS
from .known_rated import RATED
from .schema import RowError

OWN = "own"
"""The format of rows that are in our own forms, whatever other fields they have."""

SCHEMAS = {schema.name: schema for schema in (*PAIRS, *CHOICES, *RATED)}
FORMATS = (OWN, *SCHEMAS)


def schema_of(raw: Raw, name: str | None = None) -> Schema | None:
    """Returns the schema that a row is in, or None for our own forms.

    A row has a schema if it has all fields that the schema needs. Of two that fit, the one that needs all that the
    other does and more is taken.

    Args:
        raw: the row.
        name: what ``format:`` says, if it says anything.

    Raises:
        RowError: two schemas fit and neither needs more than the other, or a field that the named one needs is missing.
    """
    if name == OWN:
        return None
    if name is not None:
        schema = SCHEMAS[name]
        if missing := sorted(schema.needs - raw.keys()):
            raise RowError(f"{_listed(missing)} missing, which {schema.title} has (format: {name}){_found(raw)}")
        return schema
    given = frozenset(field for field, value in raw.items() if value is not None)
    return _only(raw, given) or (_only(raw, frozenset(raw)) if len(given) < len(raw) else None)


def _only(raw: Raw, given: frozenset[str]) -> Schema | None:
    fitting = [schema for schema in _candidates(given) if schema.fits(raw)]
    closest = [one for one in fitting if not any(one.needs < other.needs for other in fitting)]
    if len(closest) > 1:
        titles = " and ".join(f"{one.title} ({one.name})" for one in closest)
        raise RowError(f"the fields fit {titles}: say which with format:")
    return closest[0] if closest else None


@lru_cache(maxsize=256)
def _candidates(given: frozenset[str]) -> tuple[Schema, ...]:
    return tuple(one for one in SCHEMAS.values() if one.needs <= given and not one.lacks & given and not one.forced)


def near_formats(raw: Raw) -> str:
    """Says which fields a row has and which formats come near, for the error on a row that is in none."""
    shared = {one: len(one.needs & raw.keys()) / len(one.needs) for one in SCHEMAS.values() if one.needs}
    near = sorted((one for one, part in shared.items() if part > 0.5), key=lambda one: (-shared[one], one.name))
    lines = [f"{one.name} (lacking {', '.join(sorted(one.needs - raw.keys()))})" for one in near[:3]]
    hint = f"; near formats: {', '.join(lines)}" if lines else ""
    return f"{_found(raw)}{hint}"


def _found(raw: Iterable[str]) -> str:
    return f"; found the fields {', '.join(sorted(map(str, raw))) or 'of no name'}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
