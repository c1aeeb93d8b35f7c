"""The completions that are wanted of the cache: the key of each, and the row of the data where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.data import ScoredSequence, keys_of, lengths, sequence


class Places:
    """The distinct completions of some tokenised sets, without their tokens: about 40 bytes each.

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
        self._row = (first - starts[self._part]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def sequences(self, places: Sequence[int] | NDArray[np.intp]) -> list[ScoredSequence]:
        """Returns prompts and completions at ``places`` (positions in ``keys``), read from the sets now."""
        parts, rows = self._part[places].tolist(), self._row[places].tolist()
        return [sequence(self._rows[part][row], self._parts[part][1]) for part, row in zip(parts, rows, strict=True)]

    def lengths(self) -> NDArray[np.int64]:
        """Returns the number of completion tokens of each, ``[n]``."""
        return self._gathered([lengths(dataset, field) for dataset, field in self._parts])

    def by_prompt(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Orders ``places``: the longest prompts first, completions of one prompt together, the longest first."""
        prompts = self._gathered([lengths(dataset, "prompt") for dataset, _ in self._parts])
        names = self._gathered([keys_of(dataset, "prompt") for dataset, _ in self._parts])
        return places[np.lexsort((-self.lengths()[places], names[places], -prompts[places]))]

    def _gathered(self, columns: list[NDArray[Any]]) -> NDArray[Any]:
        """Picks the entry of each place out of one column for each part."""
        gathered = np.empty(len(self), columns[0].dtype if columns else np.int64)
        for part, column in enumerate(columns):
            mine = self._part == part
            gathered[mine] = column[self._row[mine]]
        return gathered
