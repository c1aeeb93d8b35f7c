"""Rows dealt to ranks, and what all ranks found of them put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from alignlab.runtime import gathered, rank_and_ranks

Row = TypeVar("Row")


def share(count: int) -> list[int]:
    """Returns the rows of this rank, as many on every rank: where rows run out, the first ones come again."""
    rank, ranks = rank_and_ranks()
    each = -(-count // ranks)
    return [(index * ranks + rank) % count for index in range(each)]


def joined(rows: Sequence[Row], key: Callable[[Row], Any]) -> list[Row]:
    """Returns the rows of all ranks in the order of their keys, each once, on every rank."""
    found = {key(row): row for part in gathered(rows) for row in part}
    return [found[name] for name in sorted(found)]
