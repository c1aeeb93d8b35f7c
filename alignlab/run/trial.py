"""One trial of a search: a run that tells the study its held-out metric, and ends where it is given up."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from transformers import TrainerCallback

from alignlab.config import load_config
from alignlab.runtime import from_main

from .search import Search
from .single import train
from .study import Study


class GivenUp(Exception):
    """A trial was worse than the median of the others at a step; the study has it."""


class Reports(TrainerCallback):  # type: ignore[misc]
    """Tells the study the metric of the search at each evaluation; rank 0 speaks, and all ranks end together.

    What is measured before the first step says nothing of a trial and is left out.

    Raises:
        GivenUp: at an evaluation before the last step, on every rank.
        ValueError: a step's evaluations lack the metric.
    """

    def __init__(self, search: Search, number: int) -> None:
        self.search, self.number = search, number
        self.metric, self.found, self.others = search.options.metric, False, set[str]()

    @cached_property
    def study(self) -> Study:
        """The study, which rank 0 alone opens."""
        return Study(self.search)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        if step == 0 or not metrics:
            return
        if self.metric not in metrics:  # there may be several sets, each with metrics of its own
            self.others |= set(metrics)
            return
        self.found, value = True, float(metrics[self.metric])
        if from_main(lambda: self.study.report(self.number, step, value, last)):
            raise GivenUp(f"trial {self.number} is given up at step {step}: {self.metric} is {value:.6g}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.others and not self.found and self.metric.startswith("eval_"):
            from_main(lambda: self.study.lacks_metric(self.number, sorted(self.others)))
            raise ValueError(f"search.metric: {self.metric!r} is not logged")


def run_trial(search: Search, number: int) -> str:
    """Trains one trial, on from its checkpoint if there is one; returns why it was given up, if it was."""
    config = load_config(search.config_file(number), ["--resume_from_checkpoint", "auto"])
    try:
        train(config, [Reports(search, number)])
    except GivenUp as reason:
        return str(reason)
    return ""
