"""How fast a run trains and how much memory it takes, for its log."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

Sums = dict[str, tuple[float, float]]
_COMPLETIONS = ("lengths/chosen", "lengths/rejected")


class Throughput:
    """The clock between two logs of training, stopped while the run evaluates.

    Saving checkpoints counts, as does waiting for data: it is the time that the run takes.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def start(self) -> None:
        """Starts the clock anew."""
        self._since = time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out the time that is spent within."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - before

    def lap(self, parts: Sequence[Sums]) -> dict[str, float]:
        """Returns rows and completion tokens a second over all ranks since the last lap.

        Args:
            parts: each rank's sums and counts of row metrics since then. Rows are pairs, or labelled completions.
        """
        now = time.perf_counter()
        seconds, self._since = max(now - self._since, 1e-9), now
        rows = sum(part["objective"][1] for part in parts if "objective" in part)
        tokens = sum(part[name][0] for part in parts for name in _COMPLETIONS if name in part)
        return {"speed/rows_per_second": rows / seconds, "speed/tokens_per_second": tokens / seconds}


def peak_memory() -> float:
    """Returns the most memory that this process has held, GB: on its GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
