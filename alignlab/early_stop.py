"""Stopping early without losing work: a signal becomes a checkpoint at the end of the step, on all ranks at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STOPPED_EARLY = 75  # exit status "try again later" (EX_TEMPFAIL): a job script requeues on it
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StoppedEarly(Exception):
    """A run was told to stop before its end; everything it needs to go on is saved."""


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops at the end of the optimiser step in which any rank got SIGUSR1 or SIGTERM.

    ``stopped`` then says so; a run that was at its end anyway is not stopped early.
    """

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False
        self._previous: dict[signal.Signals, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._previous = {one: signal.signal(one, self._ask) for one in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._any_rank(args.device):
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, handler)

    def _any_rank(self, device: torch.device) -> bool:
        """True on every rank if any rank was asked: signals arrive in different steps, saving is collective."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked)
