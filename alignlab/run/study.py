"""The study of a search, on a disk that its workers share: who runs which trial, and what came of it."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from alignlab.checkpoints import is_run_in

from .search import Search
from .sweep import SweepRun

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)
JOURNAL = "study.journal"
NAME = "search"
MOST_DEATHS = 3  # a trial whose workers die so often has failed: it may be what kills them
LEAST_FOR_IMPORTANCE = 10  # finished trials
DEFINITION, PRUNED, MISSING, STOPPED, DEATHS, REASON = (
    "definition",
    "pruned at",
    "not in",
    "stopped",
    "deaths",
    "reason",
)


@dataclass(frozen=True)
class Taken:
    """A trial that is this worker's until ``held`` is released, as any death releases it."""

    number: int
    drawn: Mapping[str, Any]
    held: FileLock


class Study:
    """What Optuna knows of a search, in a journal on disk.

    A worker takes and settles trials under one lock. Which values a trial gets depends on the search's seed, the
    trial's number and the trials before it: a search that was killed goes on as if it had not been.

    Raises:
        ValueError: the folder holds the study of another search; names the key.
    """

    def __init__(self, search: Search) -> None:
        import optuna

        from .journal import open_journal

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, prune = search, search.prune
        search.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(search.folder / ".study.lock", thread_local=False)
        with self.lock:
            self._storage = open_journal(search.folder / JOURNAL)
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=self._sampler(0),
                pruner=optuna.pruners.NopPruner()
                if prune is None
                else optuna.pruners.MedianPruner(prune.startup_trials, prune.warmup_steps),
                study_name=NAME,
                direction=search.options.direction,
                load_if_exists=True,
            )
            self._check_same()

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def take(self) -> Taken | None:
        """Returns a trial to run: one whose worker is gone, else a new one; None where no more are to be drawn."""
        with self.lock:
            trials = self.trials()
            for trial in trials:
                if not trial.state.is_finished() and (held := self._hold(trial.number)):
                    if not self.search.space.distributions.keys() <= trial.params.keys():
                        return Taken(trial.number, self._draw(trial.number, trial), held)
                    if self._goes_on(trial):
                        return Taken(trial.number, trial.params, held)
                    held.release()
            number = len(trials)
            if number >= self.search.options.trials or (held := self._hold(number)) is None:
                return None
            return Taken(number, self._draw(number), held)

    def settle(self, number: int, run: SweepRun) -> str:
        """Tells what came of a trial, if its folder or its run have said it; returns that in words, else nothing.

        Raises:
            ValueError: the metric of the search is none that the run logs.
        """
        from optuna.trial import TrialState

        metric, said = self.search.options.metric, self._trial(number).user_attrs
        if MISSING in said:
            self._refuse_metric(number, said[MISSING])
        if PRUNED in said:
            self._study.tell(number, state=TrialState.PRUNED)
            return f"given up at step {said[PRUNED]}"
        if not run.is_done:
            return ""
        metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
        if metric not in metrics:
            self._refuse_metric(number, metrics)
        if not math.isfinite(metrics[metric]):
            return self.fail(number, f"{metric} is {metrics[metric]}")
        self._study.tell(number, metrics[metric])
        return f"{metric}: {metrics[metric]:.6g}"

    def fail(self, number: int, reason: str) -> str:
        """Tells that a trial has failed, and why; returns that in words."""
        from optuna.trial import TrialState

        self._say(number, REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)
        return f"failed: {reason}"

    def stopped(self, number: int) -> None:
        """Notes that a trial was stopped in order, and is to go on."""
        self._say(number, STOPPED, True)

    # ---- what a trial says while it runs ---------------------------------------------------------------------------

    def report(self, number: int, step: int, value: float, last: bool) -> bool:
        """Notes the metric at a step; returns whether the trial is to be given up, which the last step never is."""
        self._storage.set_trial_intermediate_value(self._id(number), step, value)
        worse = not last and self._study.pruner.prune(self._study, self._trial(number))
        if worse:
            self._say(number, PRUNED, step)
        return worse

    def lacks_metric(self, number: int, logged: list[str]) -> None:
        """Notes that the evaluations of a run do not log the metric of the search, but these."""
        self._say(number, MISSING, logged)

    def table(self) -> dict[str, Any]:
        """Returns all trials as plain values: state, value, what was drawn, why it failed; the best; importance."""
        options = self.search.options
        rows: list[dict[str, Any]] = []
        for trial in self.trials():
            said, drawn = trial.user_attrs, self.search.space.values(trial.params)
            note = f"at step {said[PRUNED]}" if PRUNED in said else said.get(REASON, "")
            state = trial.state.name.lower()
            rows.append({"trial": trial.number, "state": state, "value": trial.value, "drawn": drawn, "note": note})
        complete = [row for row in rows if row["state"] == "complete"]
        sign = 1 if options.direction == "maximize" else -1
        best = max(complete, key=lambda row: sign * row["value"])["trial"] if complete else None
        kept = {"metric": options.metric, "direction": options.direction, "asked": options.trials}
        return {**kept, "best": best, "trials": rows, "importance": self._importance(len(complete))}

    def _importance(self, complete: int) -> dict[str, float]:
        """Returns each key's part in how good a trial is, by PED-ANOVA; empty where too few trials are finished."""
        if complete < LEAST_FOR_IMPORTANCE:
            return {}
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        with _quiet():
            found = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator())
        return {key: float(value) for key, value in found.items()}

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _check_same(self) -> None:
        now = json.loads(json.dumps(self.search.definition, default=str))
        before = self._study.user_attrs.get(DEFINITION)
        if before is None:
            self._study.set_user_attr(DEFINITION, now)
            return
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{self.search.file}: {self.search.folder} holds a search with {key}: {before.get(key)!r}, and "
                    f"the file says {now.get(key)!r}; choose another output_dir, or move that folder away"
                )

    def _sampler(self, number: int) -> BaseSampler:
        """Returns what draws a trial: by the search's seed and the trial's number, whatever this worker drew before."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.search.options.seed, number]).generate_state(1)[0])
        if self.search.options.sampler == "random":
            return RandomSampler(seed)
        with _quiet():
            return TPESampler(seed=seed, constant_liar=True)  # several workers draw apart from each other

    def _draw(self, number: int, begun: FrozenTrial | None = None) -> Mapping[str, Any]:
        """Returns what is drawn for a new trial, or for one whose worker was killed before all of it was drawn."""
        from optuna.trial import TrialState

        space, self._study.sampler = dict(self.search.space.distributions), self._sampler(number)
        if begun is not None:
            for name in (one for one in space if one in begun.params and not space[one].single()):
                self._study.sampler.sample_independent(self._study, begun, name, space[name])  # the rest comes after it
            self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)  # which ask() takes first
        return self._study.ask(space).params

    def _hold(self, number: int) -> FileLock | None:
        """Returns the lock of a trial, taken; None where a worker holds it, or a run that outlived its worker."""
        (folder := self.search.folder / ".workers").mkdir(exist_ok=True)
        lock = FileLock(folder / f"trial-{number}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if is_run_in(self.search.folder / f"trial-{number}"):
            lock.release()
            return None
        return lock

    def _goes_on(self, trial: FrozenTrial) -> bool:
        """Settles a trial whose worker is gone, or returns that it is to go on."""
        if self.settle(trial.number, self.search.run(trial.number, trial.params)):
            return False
        if trial.user_attrs.get(STOPPED):
            self._say(trial.number, STOPPED, False)
            return True
        deaths = trial.user_attrs.get(DEATHS, 0) + 1
        self._say(trial.number, DEATHS, deaths)
        if deaths < MOST_DEATHS:
            return True
        logger.warning("trial %d %s", trial.number, self.fail(trial.number, f"its worker died {deaths} times"))
        return False

    def _refuse_metric(self, number: int, logged: Any) -> None:
        names = ", ".join(sorted(name for name in logged if name.startswith("eval_")) or sorted(logged))
        error = f"search.metric: {self.search.options.metric!r} is never logged; logged are {names}"
        self.fail(number, error)
        raise ValueError(f"{self.search.file}: {error}")

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._storage.get_study_id_from_name(NAME), number)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _say(self, number: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out that Optuna calls some of what is used here experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
