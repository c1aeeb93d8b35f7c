"""Stopping early without losing work: a signal or a limit of time becomes a checkpoint, on all ranks at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STOPPED_EARLY = 75  # exit status "try again later" (EX_TEMPFAIL): a job script requeues on it
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_FIRST_SAVE = 0.05  # of the limit: how long saving is taken to last before the run has saved once
_LEAVING = 10.0  # seconds for a process to end once it has saved


class StoppedEarly(BaseException):
    """A run was told to stop before its end; everything it needs to go on is saved.

    Not an ``Exception``: code that tries something out and goes on if it fails must not take it for a failure.

    Attributes:
        together: whether all ranks stop at the same place, so that they may still wait for each other.
    """

    def __init__(self, message: str, together: bool = True) -> None:
        super().__init__(message)
        self.together = together


class StopSignals:
    """Notes SIGUSR1 and SIGTERM from entering to leaving.

    While a run prepares, a signal raises StoppedEarly where it stands: there is nothing to save but scores of frozen
    models, which the cache keeps as they are made. While it trains, ``EarlyStop`` acts at the end of the step. Behind
    the last step a run that was told to stop finishes: what is left is to evaluate and to save the model.
    """

    def __init__(self) -> None:
        self.asked = False
        self.preparing = True
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._previous = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker process that was forked off dies of it, as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.asked = True
        if self.preparing:
            name = signal.Signals(number).name
            raise StoppedEarly(f"{name} came before the first step; started again, the run begins here", together=False)


class WallClock:
    """How much time a run has left, and how much it needs to stop in order, measured on the run itself.

    Args:
        limit: seconds from the start of the process.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.step, self.save, self.evaluation = 0.0, _FIRST_SAVE * limit, 0.0  # the longest of each, seconds
        self._saved, self._evaluated = False, 0.0
        self._since = time.monotonic()
        self._started: float = time.monotonic() - (time.time() - psutil.Process().create_time())

    def lap(self) -> float:
        """Returns the seconds since the last call."""
        since, self._since = self._since, time.monotonic()
        return self._since - since

    def step_done(self) -> None:
        self.step = max(self.step, self.lap())
        self._evaluated = 0.0

    def set_evaluated(self) -> None:
        self._evaluated += self.lap()  # a run may have several evaluation sets
        self.evaluation = max(self.evaluation, self._evaluated)

    def save_done(self) -> None:
        self.save = max(self.save if self._saved else 0.0, self.lap())
        self._saved = True

    def is_short(self, evaluates: bool) -> bool:
        """True if a step (and the evaluation that is due) and a save might not fit, each lasting twice as long."""
        needed = self.step + self.save + (self.evaluation if evaluates else 0.0)
        return time.monotonic() - self._started + 2 * needed + _LEAVING >= self.limit


class EarlyStop(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops at the end of the optimiser step in which any rank has a reason to.

    Reasons are a signal, or too little time before the limit. ``reason`` then says which; a run that was at its end
    anyway is not stopped early. An evaluation that is due in the same step is left out.

    Args:
        limit: seconds from the start of the process; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.signals: StopSignals | None = None
        self.clock = None if limit is None else WallClock(limit)
        self.reason: str | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.signals is not None:
            self.signals.preparing = False
        if self.clock is not None:
            self.clock.lap()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.clock is not None:
            self.clock.step_done()
        self._stop_if_asked(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_evaluate:  # what comes now was not foreseen at the end of the step
            self._stop_if_asked(args, state, control)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.clock is not None:
            self.clock.set_evaluated()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        if self.clock is not None:
            self.clock.save_done()

    def _stop_if_asked(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step >= state.max_steps or self.reason is not None:
            return
        reason = self._agreed_reason(bool(control.should_evaluate), args.device)
        if reason is not None:
            self.reason = f"{reason} at step {state.global_step}"
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def _agreed_reason(self, evaluates: bool, device: torch.device) -> str | None:
        """Returns the same on every rank: signals and clocks differ between them, saving is collective."""
        asked = self.signals is not None and self.signals.asked
        late = self.clock is not None and self.clock.is_short(evaluates)
        if (self.signals is not None or self.clock is not None) and dist.is_initialized() and dist.get_world_size() > 1:
            both = torch.tensor([float(asked), float(late)], device=device)
            dist.all_reduce(both, dist.ReduceOp.MAX)
            asked, late = bool(both[0]), bool(both[1])
        return "told to stop" if asked else "stopped before max_wall_time" if late else None
