"""The part of the trainer that logs: what is summed up between two logs outlives a kill between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import Trainer

from alignlab.checkpoints import write_whole
from alignlab.runtime import gathered

from .row_metrics import MetricSums, added, means
from .throughput import Sums, Throughput, peak_memory

FILE = "sums.json"  # in a checkpoint


class SoFar(NamedTuple):
    """What a run had summed up when it saved.

    Attributes:
        step: of its last log. total: the sum of the losses of all steps until then, means over ranks.
        since: the same of the steps after it. metrics: sums and counts of row metrics after it, over all ranks.
    """

    step: int = 0
    total: float = 0.0
    since: float = 0.0
    metrics: Mapping[str, tuple[float, float]] = {}


class SummedTrainer(Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` whose logs do not show where a run was stopped and resumed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums, self._throughput = MetricSums(), Throughput()
        self._earlier: Sums = {}  # summed up before this start, since the last log
        self._to_take_up: SoFar | None = SoFar()
        self._is_known = True  # what was before this start

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics since the last log to a training log, reduced over ranks once.

        ``train_loss`` is the mean over all steps of the run; the stock one is over those since it was resumed.
        """
        if "loss" in logs:
            parts, peaks = zip(*gathered((self._sums.drain(), peak_memory())), strict=True)
            found = means([*parts, self._earlier])
            self._earlier = {}
            logs |= {name: value for name, value in found.items() if name != "objective"}
            logs |= self._throughput.lap(parts) | {"memory/peak_gb": max(peaks)}
        if "train_loss" in logs and self._is_known:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def save_sums(self, checkpoint: Path) -> None:
        """Writes what is summed up into a checkpoint folder; all ranks call it."""
        own, metrics = zip(*gathered((float(self._tr_loss), self._sums.numbers())), strict=True)
        if self.args.should_save:
            since, logged = sum(own) / len(own), self._globalstep_last_logged
            found = SoFar(logged, self._total_loss_scalar, since, added([*metrics, self._earlier]))
            write_whole(checkpoint / FILE, json.dumps(found._asdict()) + "\n")

    def read_sums(self, checkpoint: str | None, counts_anew: bool) -> None:
        """Reads what a run had summed up, to be taken up once the stock loop has set its own sums to nothing.

        Args:
            counts_anew: whether steps are counted otherwise than in the checkpoint, which sums then do not fit.
        """
        file = None if checkpoint is None else Path(checkpoint) / FILE
        self._is_known = file is None or (file.is_file() and not counts_anew)
        read = file is not None and self._is_known
        self._to_take_up = SoFar(**json.loads(file.read_text(encoding="utf-8"))) if read and file else None

    def _take_up(self) -> None:
        found, self._to_take_up = self._to_take_up, None
        if found is not None:
            self._globalstep_last_logged, self._total_loss_scalar = found.step, found.total
            self._tr_loss += found.since
            self._earlier = {name: (total, count) for name, (total, count) in found.metrics.items()}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._take_up()
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Ends training as usual, but leaves the newest checkpoint beside the best: a run that is killed needs it."""
        self._take_up()  # where no epoch was left
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
