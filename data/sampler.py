"""The order of rows: which rows meet in an optimiser step, and how they are dealt to micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler


def filler(index: int) -> int:
    """Encodes a row that only fills a micro-batch: it goes through the model and counts for nothing."""
    return ~index


@dataclass(frozen=True)
class StepCut:
    """How an optimiser step is cut: rows of a micro-batch, micro-batches of a rank, ranks."""

    per_device: int
    accumulation: int = 1
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Rows of a whole step."""
        return self.per_device * self.accumulation * self.ranks

    def micro_batches(self, rows: int) -> int:
        """Returns how many micro-batches each rank runs for a step of so many rows."""
        return -(-rows // (self.per_device * self.ranks))


class StepSampler(Sampler[list[int]]):
    """Yields one rank's micro-batches, optimiser step by optimiser step.

    An optimiser step takes the next ``cut.rows`` rows of one permutation, which depends on seed and epoch alone: not
    on the number of ranks, nor on how the step is cut into micro-batches. A last, smaller step is dealt out evenly; a
    rank left without a row gets a filler (a row encoded by ``filler``), so that every rank runs the same number of
    micro-batches and no row is trained on twice.

    Args:
        rows: rows of the set. cut: how a step of them is cut. rank: whose share this is.
        shuffle: whether rows are permuted. drop_last: whether a last, smaller step is left out.
        tokens: tokens of each row. With them a step is dealt so that its micro-batches, on all ranks, carry about
            equally many; without them in the order of the permutation.
        length_window: rows are sorted by tokens within windows of this many steps, and the steps of a window are
            taken in random order. This changes which rows meet in a step; 0 leaves the permutation as it is.
    """

    def __init__(
        self,
        rows: int,
        cut: StepCut,
        *,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        tokens: Sequence[int] | np.ndarray[Any, Any] | None = None,
        length_window: int = 0,
    ) -> None:
        if rows < 1:
            raise ValueError("there is no row to train or evaluate on")
        self.rows, self.cut, self.rank = rows, cut, rank
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        if drop_last and rows < cut.rows:
            raise ValueError(f"dataloader_drop_last: {rows} rows are fewer than the {cut.rows} of one optimiser step")
        self.tokens = None if tokens is None else np.asarray(tokens, dtype=np.int64)
        assert self.tokens is None or len(self.tokens) == rows
        assert not length_window or self.tokens is not None, "rows are sorted by their tokens"
        self.length_window = length_window
        self.epoch = 0

    @property
    def batch_sampler(self) -> StepSampler:
        """The trainer reaches for ``dataloader.batch_sampler.batch_sampler`` to set the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which with the seed decides the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.cut.rows)
        return full * self.cut.accumulation + (0 if self.drop_last else self.cut.micro_batches(rest))

    def steps(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yields the rows of each optimiser step of this epoch, over all ranks; the last step may be smaller."""
        order, size = np.arange(self.rows), self.cut.rows
        chance = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            order = chance.permutation(self.rows)
        full = self.rows - self.rows % size
        for window in _windows(full // size, self.length_window or 1):
            rows = order[window.start * size : window.stop * size]
            steps = rows.reshape(-1, size)
            if self.length_window and self.tokens is not None:
                steps = rows[np.argsort(self.tokens[rows], kind="stable")].reshape(-1, size)
                steps = steps[chance.permutation(len(steps))]
            yield from steps
        if full < self.rows and not self.drop_last:
            yield order[full:]

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            shares = deal(step, self.cut.micro_batches(len(step)) * self.cut.ranks, self.tokens)
            for share in shares[self.rank :: self.cut.ranks]:
                yield share or [filler(int(step[0]))]


def _windows(steps: int, size: int) -> Iterator[range]:
    for start in range(0, steps, size):
        yield range(start, min(start + size, steps))


def deal(step: np.ndarray[Any, Any], shares: int, tokens: np.ndarray[Any, Any] | None = None) -> list[list[int]]:
    """Deals the rows of a step into shares whose numbers of rows differ by at most one.

    With ``tokens`` (of every row of the set) the longest row left goes to the share with the fewest tokens that has
    room, so that shares carry about equally many.
    """
    even = [part.tolist() for part in np.array_split(step, shares)]
    if tokens is None or shares == 1:
        return even
    room = [len(part) for part in even]
    dealt: list[list[int]] = [[] for _ in even]
    carried = [0] * shares
    for row in step[np.argsort(-tokens[step], kind="stable")].tolist():
        least = min((share for share in range(shares) if len(dealt[share]) < room[share]), key=carried.__getitem__)
        dealt[least].append(row)
        carried[least] += int(tokens[row])
    return dealt
