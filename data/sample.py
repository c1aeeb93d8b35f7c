"""A sample of the rows of several sources, each with the place that it came from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .chunks import Chunk, Located, chunked
from .sources import Source


class GivenRows(Source):
    """Some rows of another source, with the places that they have there."""

    def __init__(self, source: Source, located: list[Located]) -> None:
        super().__init__(source.path, source.weight, format=source.format)
        object.__setattr__(self, "rows", located)  # the class is frozen

    def _chunks(self, size: int) -> Iterator[Chunk]:
        """Yields the rows, whose columns have our names already."""
        yield from chunked(self.rows, size)


def sample(sources: list[Source], rows: int) -> tuple[list[Source], int]:
    """Draws rows evenly over all sources, the same ones each time, and counts what is there.

    Returns:
        The sources with those rows alone, in their order and with their places, and the number of all rows.
    """
    draw = np.random.default_rng(0)
    kept: list[tuple[int, int, Located]] = []  # of a reservoir: source, number over all, row
    number = 0
    for index, source in enumerate(sources):
        for located in source.read():
            place = number if number < rows else int(draw.integers(number + 1))
            if place < rows:
                kept[place : place + 1] = [(index, number, located)]
            number += 1
    parts: list[Source] = []
    for index, source in enumerate(sources):
        of_source = sorted((one for one in kept if one[0] == index), key=lambda one: one[1])
        parts.append(GivenRows(source, [located for *_, located in of_source]))
    return parts, number
