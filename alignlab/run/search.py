"""Searches: the file that says which hyper-parameters Optuna draws, and by which held-out metric; checked in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from alignlab.config import Key, RunConfig, Schema, Values, find_config, read_yaml, unknown_key

from .space import Space, read_space
from .sweep import NOT_THE_RUN, SweepRun, flat, make_run

KEYS = ("config", "output_dir", "set", "search", "launcher")
_FREE = ("trials", "prune")  # what may change in a search that has begun: all else would make it another one


@dataclass(frozen=True)
class Prune:
    """When a trial is given up: the best of its values so far is worse than the median of the others at that step.

    Attributes:
        startup_trials: so many trials end before any is given up.
        warmup_steps: no trial is given up before this step.
    """

    startup_trials: int = 5
    warmup_steps: int = 0


@dataclass
class _Block:
    """The keys of ``search:``, with their types checked."""

    trials: int
    space: dict[str, Any]
    sampler: Literal["tpe", "random"] = "tpe"
    metric: str = "eval_rewards/accuracies"
    direction: Literal["maximize", "minimize"] = "maximize"
    prune: bool | dict[str, Any] = False
    seed: int = 0


@dataclass(frozen=True)
class Search:
    """A search, checked: a config loads at every end of every range.

    Attributes:
        file: where it was read from; folder: holds a folder for each trial, the study and the report.
        base, set: what every trial starts from, and what it has beyond that.
        options: trials (how many, of all workers, failed ones among them), metric and direction (what is made as
            large or as small as can be, as ``metrics.json`` has it at the end), sampler, seed (of what is drawn).
        space: what is drawn; prune: None where no trial is given up.
        definition: what makes it this search and no other, by dotted key.
        launcher: the words that start a module of Python, empty for this interpreter.
    """

    file: Path
    folder: Path
    base: Values
    set: Values
    options: _Block
    space: Space
    prune: Prune | None
    definition: Mapping[str, Any]
    launcher: str = ""

    def run(self, number: int, drawn: Mapping[str, Any]) -> SweepRun:
        """Returns the run of a trial.

        Raises:
            ValueError: what was drawn does not go together, or the folder holds another run.
        """
        values, where = self.space.values(drawn), f"{self.file}: search: trial {number}"
        return make_run(where, self.base, [self.set, values], values, self.folder, f"trial-{number}")

    def config_file(self, number: int) -> Path:
        """Returns where the resolved config of a trial lies."""
        return self.folder / "configs" / f"trial-{number}.yaml"


def is_search(path: str | Path) -> bool:
    """Returns whether a sweep's file has a ``search:`` block."""
    return "search" in read_yaml(find_config(path))


def load_search(path: str | Path, launcher: str | None = None, check_runs: bool = True) -> Search:
    """Reads a search and checks the config at every end of every range, without loading a model or data.

    Args:
        launcher: the words that start a module of Python, in place of the file's.
        check_runs: False leaves the configs out, where they have been checked already.

    Raises:
        ValueError: an unknown key, an empty or impossible space, a config that is wrong at an end of a range, pruning
            without evaluations, or no Optuna; names the dotted key.
        FileNotFoundError: no such search, or no such config.
    """
    path = find_config(path)
    if find_spec("optuna") is None:
        raise ValueError(f"{path}: search: needs Optuna, which is not installed: pip install 'alignlab[search]'")
    values = read_yaml(path)
    try:
        _check_file(values)
        options = _block(values["search"])
        space, prune = read_space(options.space, "search.space"), _prune(options.prune)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    base, extra = read_yaml(find_config(values["config"])), values.get("set", {})
    said = flat({name: value for name, value in vars(options).items() if name not in _FREE}, "search.")
    started = {key: value for key, value in flat({**base, **extra}).items() if key.split(".")[0] not in NOT_THE_RUN}
    words = values.get("launcher", "") if launcher is None else launcher
    search = Search(path, Path(values["output_dir"]), base, extra, options, space, prune, started | said, words)
    if check_runs:
        _check_runs(search)
    return search


def _check_file(values: Values) -> None:
    kinds = {"config": str, "output_dir": str, "set": dict, "search": dict, "launcher": str}
    for key in values:
        if key in ("grid", "runs"):
            raise ValueError(f"{key}: a search draws its runs itself; leave out {key}, or search")
        if key not in KEYS:
            raise unknown_key(str(key), KEYS)
    for key, kind in kinds.items():
        given = key in values or key in ("config", "output_dir")
        if given and not isinstance(values.get(key), kind):
            raise ValueError(f"{key}: expected {'text' if kind is str else 'a mapping'}, found {values.get(key)!r}")


def _block(values: Values) -> _Block:
    keys = Schema()
    keys.add_dataclass("search", _Block, prefix="search.")
    block = _Block(**keys.check({"search": values})["search"])
    for name, least in {"trials": 1, "seed": 0}.items():
        if getattr(block, name) < least:
            raise ValueError(f"search.{name}: expected at least {least}, found {getattr(block, name)}")
    if not block.space:
        raise ValueError("search.space: empty; say what to draw: `learning_rate: {low: 1e-7, high: 1e-5, log: true}`")
    if ("metric" in values) != ("direction" in values):
        missing = "direction (maximize or minimize)" if "metric" in values else "metric"
        raise ValueError(f"search.{missing}: metric and direction are given together, or neither")
    return block


def _prune(asked: bool | Mapping[str, Any]) -> Prune | None:
    if isinstance(asked, bool):
        return Prune() if asked else None
    keys = Schema()
    keys.add("search.prune", [Key(f"search.prune.{one.name}", int, one.default, "") for one in fields(Prune)])
    found = Prune(**keys.check({"search": {"prune": dict(asked)}})["search"]["prune"])
    for name, least in {"startup_trials": 1, "warmup_steps": 0}.items():
        if getattr(found, name) < least:
            raise ValueError(f"search.prune.{name}: expected at least {least}, found {getattr(found, name)}")
    return found


def _check_runs(search: Search) -> None:
    for key, values in search.space.corners():
        try:
            layers = [search.set, values]
            run = make_run(f"search.space.{key} at {values[key]}", search.base, layers, values, search.folder, "corner")
            _check_evaluates(search, run.config)
        except ValueError as error:
            raise ValueError(f"{search.file}: {error}") from error


def _check_evaluates(search: Search, config: RunConfig) -> None:
    """Refuses a held-out metric without held-out rows, and pruning without evaluations on the way."""
    training, metric = config.training, search.options.metric
    if metric.startswith("eval_") and config.data.eval is None and config.data.eval_rows is None:
        raise ValueError(
            f"search.metric: {metric} is never logged: nothing to evaluate on; give data.eval or data.eval_rows"
        )
    if search.prune is None:
        return
    if not metric.startswith("eval_"):
        raise ValueError(f"search.prune: needs a metric of evaluations, eval_...; search.metric is {metric}")
    strategy, steps = training.get("eval_strategy", "no"), training.get("eval_steps")
    if strategy == "no" or (strategy == "steps" and steps is None):
        found = f"eval_strategy: {strategy}, eval_steps: {steps}"
        raise ValueError(
            f"search.prune: needs evaluations on the way, found {found}; say eval_strategy: steps and eval_steps"
        )
