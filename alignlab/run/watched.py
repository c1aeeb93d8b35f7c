"""Trackers' callbacks once training has begun: what fails in them is said, and ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils

from alignlab.training import PreferenceTrainer

logger = logging.getLogger(__name__)
STARTS = ("on_init_end", "on_train_begin")  # what fails there has cost nothing yet, and ends the run


@contextmanager
def watched(trainer: PreferenceTrainer) -> Iterator[None]:
    """Watches the callbacks of the run's trackers while the body runs, and says at its end how often each failed.

    The first failure is logged when it happens; each event is tried all the same, since a server may come back.
    """
    names = {integration_utils.INTEGRATION_TO_CALLBACK[name]: name for name in trainer.args.report_to or ()}
    failures: dict[str, list[int]] = {}
    for callback in trainer.callback_handler.callbacks:
        if type(callback) in names:
            name = names[type(callback)]
            _watch(callback, name, failures.setdefault(name, []))
    try:
        yield
    finally:
        for name, steps in failures.items():
            if len(steps) > 1:
                text = "report_to: %s failed %d times, from step %d to %d"
                logger.warning(text, name, len(steps), steps[0], steps[-1])


def _watch(callback: TrainerCallback, name: str, failures: list[int]) -> None:
    """Puts a net under each event of a callback; one that starts it ends the run, by name."""
    for event in dir(callback):
        if event.startswith("on_"):
            told = getattr(callback, event)
            setattr(callback, event, _named(told, name) if event in STARTS else _caught(told, name, failures))


def _named(event: Callable[..., Any], name: str) -> Callable[..., Any]:
    def tell(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        try:
            return event(args, state, control, **kwargs)
        except Exception as error:
            raise ValueError(f"report_to: {name} did not start: {type(error).__name__}: {error}") from error

    return tell


def _caught(event: Callable[..., Any], name: str, failures: list[int]) -> Callable[..., Any]:
    def tell(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        try:
            return event(args, state, control, **kwargs)
        except Exception as error:
            failures.append(state.global_step)
            if len(failures) == 1:
                text = "report_to: %s failed at step %d, and training goes on: %s: %s"
                logger.warning(text, name, state.global_step, type(error).__name__, error)
            return None

    return tell
