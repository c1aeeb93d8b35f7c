"""The completions that are wanted of the cache: the key of each, and the row of the data where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.data import LIST, ScoredSequence, keys_of, lengths, list_lengths, list_sizes, sequence


class Places:
    """The distinct completions of some tokenised sets, without their tokens: about 60 bytes each.

    Attributes:
        keys: content keys ``[n]``, each once, in the order in which the sets first hold them (16 bytes each).
    """

    def __init__(self, wanted: Sequence[tuple[Any, Sequence[str]]]) -> None:
        self._parts = [(dataset, field) for dataset, fields in wanted for field in fields]
        self._rows = [
            dataset.select_columns(["prompt_ids", f"{field}_ids", f"{field}_mask"]) for dataset, field in self._parts
        ]
        found = [keys_of(dataset, field) for dataset, field in self._parts]
        keys = np.concatenate([np.empty(0, "S16"), *found])
        first = np.sort(np.unique(keys, return_index=True)[1])
        starts = np.cumsum([0, *map(len, found)])
        self.keys: NDArray[np.bytes_] = keys[first]
        self._part = (np.searchsorted(starts, first, side="right") - 1).astype(np.int32)
        self._entry = (first - starts[self._part]).astype(np.int64)
        self._row, self._place = self._entry.copy(), np.full(len(first), -1)
        for part, (dataset, field) in enumerate(self._parts):
            if field == LIST:  # an entry is one completion of a list
                mine, ends = self._part == part, np.cumsum(list_sizes(dataset))
                self._row[mine] = np.searchsorted(ends, self._entry[mine], side="right")
                begins = np.r_[0, ends][self._row[mine]]
                self._place[mine] = self._entry[mine] - begins

    def __len__(self) -> int:
        return len(self.keys)

    def sequences(self, places: Sequence[int] | NDArray[np.intp]) -> list[ScoredSequence]:
        """Returns prompts and completions at ``places`` (positions in ``keys``), read from the sets now."""
        parts, rows, which = (column[places].tolist() for column in (self._part, self._row, self._place))
        read = {one: self._rows[one[0]][one[1]] for one in set(zip(parts, rows, strict=True))}
        return [
            sequence(read[part, row], self._parts[part][1], None if place < 0 else place)
            for part, row, place in zip(parts, rows, which, strict=True)
        ]

    def lengths(self) -> NDArray[np.int64]:
        """Returns the number of completion tokens of each, ``[n]``."""
        found = [list_lengths(dataset) if field == LIST else lengths(dataset, field) for dataset, field in self._parts]
        return self._gathered(found, self._entry)

    def by_prompt(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Orders ``places``: the longest prompts first, completions of one prompt together, the longest first."""
        prompts = self._gathered([lengths(dataset, "prompt") for dataset, _ in self._parts], self._row)
        names = self._gathered([keys_of(dataset, "prompt") for dataset, _ in self._parts], self._row)
        return places[np.lexsort((-self.lengths()[places], names[places], -prompts[places]))]

    def _gathered(self, columns: list[NDArray[Any]], entries: NDArray[np.int64]) -> NDArray[Any]:
        """Picks the entry of each place out of one column for each part."""
        gathered = np.empty(len(self), columns[0].dtype if columns else np.int64)
        for part, column in enumerate(columns):
            mine = self._part == part
            gathered[mine] = column[entries[mine]]
        return gathered
