"""The order of rows: which rows meet in an optimiser step, and how they are dealt to micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def filler(index: int) -> int:
    """Encodes a row that only fills a micro-batch: it goes through the model and counts for nothing."""
    return ~index


class StepSampler(Sampler[list[int]]):
    """Yields one rank's micro-batches, optimiser step by optimiser step.

    An optimiser step takes the next ``per_device * accumulation * world`` rows of one permutation, which depends on
    seed and epoch alone: not on the number of ranks, nor on how the step is cut into micro-batches. A last, smaller
    step is dealt out evenly; a rank left without a row gets a filler (a row encoded by ``filler``), so that every
    rank runs the same number of micro-batches and no row is trained on twice.
    """

    def __init__(
        self,
        rows: int,
        per_device: int,
        *,
        accumulation: int = 1,
        world: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if rows < 1:
            raise ValueError("there is no row to train or evaluate on")
        self.rows, self.per_device, self.accumulation = rows, per_device, accumulation
        self.world, self.rank, self.seed, self.shuffle = world, rank, seed, shuffle
        self.step_rows = per_device * accumulation * world
        self.drop_last = drop_last
        if drop_last and rows < self.step_rows:
            raise ValueError(
                f"dataloader_drop_last: {rows} rows are fewer than the {self.step_rows} of one optimiser step"
            )
        self.epoch = 0

    @property
    def batch_sampler(self) -> StepSampler:
        """The trainer reaches for ``dataloader.batch_sampler.batch_sampler`` to set the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which with the seed decides the order."""
        self.epoch = epoch

    def _micro_batches(self, step_rows: int) -> int:
        return -(-step_rows // (self.per_device * self.world))

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.step_rows)
        return full * self.accumulation + (0 if self.drop_last else self._micro_batches(rest))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for start in range(0, self.rows, self.step_rows):
            step = order[start : start + self.step_rows]
            if self.drop_last and len(step) < self.step_rows:
                return
            shares = np.array_split(step, self._micro_batches(len(step)) * self.world)
            for share in shares[self.rank :: self.world]:
                yield share.tolist() if len(share) else [filler(int(step[0]))]
