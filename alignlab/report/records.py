"""Reads what a run left in its folder: the logged curves, config, data, environment, samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray

_BOOKKEEPING = ("step", "epoch", "total_flos")
_ANSWERS = {"kl": ("kl", "exact"), "reward": ("reward", "mean"), "win_rate": ("win", "win_rate")}
_TIMINGS = ("_runtime", "_per_second")


class Series(NamedTuple):
    """One logged metric: the optimiser steps ``[N]`` at which it was logged, and its values ``[N]``, all finite."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        folder: where it was read from; ``name`` is what pages call it.
        config: the resolved config; environment, data: as their JSON files have them; all may be empty.
        metrics: the last values of metrics: those of ``metrics.json``, and as ``eval_generation/...`` the figures of
            answers in ``eval.json``, which `alignlab eval RUN --data FILE --output RUN/eval.json` writes.
        samples: what ``samples.json`` holds, empty where there is none.
        series: every metric of the log by name, those of evaluations under their ``eval_`` names.
        not_finite: how many logged values of a metric were NaN or infinite; they are in no series.
        step, max_steps: how far it came, and how far it was to go.
        finished: whether it came to its end and wrote ``metrics.json``.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    step: int = 0
    max_steps: int = 0
    finished: bool = False

    @property
    def loss(self) -> str:
        """The name of the loss, with that of its base."""
        block = self.config.get("loss", {})
        base = block.get("base")
        inner = base.get("name", "") if isinstance(base, Mapping) else base
        return str(block.get("name", "")) + (f" over {inner}" if inner else "")

    @property
    def evaluation_sets(self) -> list[str]:
        """The prefixes of the metrics of each evaluation set: ``eval_``, or ``eval_NAME_`` for each."""
        ends = [name.removesuffix("loss") for name in (*self.series, *self.metrics) if name.endswith("_loss")]
        return list(dict.fromkeys(end for end in ends if end.startswith("eval_")))

    def held_out(self, name: str) -> float | None:
        """Returns the last value of a metric on the first evaluation set that has it."""
        values = (self.last(prefix + name) for prefix in (*self.evaluation_sets, "eval_"))
        return next((value for value in values if value is not None), None)

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric, None if it was never logged."""
        if name in self.metrics:
            return self.metrics[name]
        found = self.series.get(name)
        return float(found.values[-1]) if found else None


def read_run(folder: str | Path, name: str | None = None, metrics: re.Pattern[str] | None = None) -> RunRecord:
    """Reads a run folder; of a run that has not ended, the state in its newest checkpoint.

    Args:
        metrics: only those whose names match are read from the log; by default all.

    Raises:
        FileNotFoundError: the folder holds no ``trainer_state.json``, nor does a checkpoint in it.
        ValueError: a file that is not JSON, or not what a run writes.
    """
    folder = Path(folder)
    state = _read_json(_state_file(folder))
    log = state.get("log_history")
    if not isinstance(log, list):
        raise ValueError(f"{_state_file(folder)}: has no list log_history; is it a trainer's state?")
    series, not_finite = _series(log, metrics)
    config = folder / "config.yaml"
    last = _optional(folder / "metrics.json")
    return RunRecord(
        folder=folder,
        name=name or folder.name,
        config=_read_yaml(config) if config.is_file() else {},
        environment=_optional(folder / "environment.json"),
        data=_optional(folder / "data.json"),
        metrics=_numbers(last) | _answer_figures(_optional(folder / "eval.json")),
        samples=_optional(folder / "samples.json"),
        series=series,
        not_finite=not_finite,
        step=int(state.get("global_step") or 0),
        max_steps=int(state.get("max_steps") or 0),
        finished=(folder / "metrics.json").is_file(),
    )


def read_runs(folders: Iterable[str | Path], metrics: re.Pattern[str] | None = None) -> list[RunRecord]:
    """Reads several runs, each named by what of its path tells it from the others; ``metrics`` as in ``read_run``."""
    paths = list(dict.fromkeys(Path(one).resolve() for one in folders))
    return [read_run(path, name, metrics) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: list[Path]) -> list[str]:
    """Returns for each path its last part, and so many parts before it as tell all of them apart."""
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def find_runs(folder: Path) -> list[Path]:
    """Returns the run folders directly in ``folder``, sorted by name; ``folder`` itself if it is a run."""
    if _has_state(folder):
        return [folder]
    return sorted(one for one in folder.iterdir() if one.is_dir() and _has_state(one)) if folder.is_dir() else []


def _has_state(folder: Path) -> bool:
    try:
        _state_file(folder)
    except FileNotFoundError:
        return False
    return True


def _state_file(folder: Path) -> Path:
    own = folder / "trainer_state.json"
    if own.is_file() and (folder / "metrics.json").is_file():
        return own
    if folder.name.startswith("checkpoint-"):
        if own.is_file():
            return own
        raise FileNotFoundError(f"{own}: no such file")
    found = [one for one in folder.glob("checkpoint-*/trainer_state.json") if _number(one.parent).isdigit()]
    newest = max(found, key=lambda one: int(_number(one.parent)), default=None)
    if own.is_file() and (newest is None or int(_number(newest.parent)) <= _read_json(own).get("global_step", 0)):
        return own
    if newest is None:
        raise FileNotFoundError(f"{folder}: no run; neither it nor a checkpoint in it holds trainer_state.json")
    return newest  # also where a run goes on in the folder of a shorter one


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def _optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; the standard library, three times slower, reads the NaN that orjson refuses."""
    content = path.read_bytes()
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    """Reads a resolved config, which any YAML reader reads alike, with the fast one."""
    try:
        value = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def _answer_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of answers that `alignlab eval` found, under their names in the log of training."""
    answers = evaluation.get("answers") or {}
    found = {name: (answers.get(section) or {}).get(figure) for name, (section, figure) in _ANSWERS.items()}
    return _numbers({f"eval_generation/{name}": value for name, value in found.items()})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _series(log: list[dict[str, Any]], metrics: re.Pattern[str] | None) -> tuple[dict[str, Series], dict[str, int]]:
    """Returns the metrics of a log as arrays, and how many values of each were not finite.

    Entries alike in their keys are read column by column: much faster than entry by entry, and most are.
    """
    columns: dict[str, tuple[list[Any], list[Any]]] = {}
    by_keys: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in log:
        by_keys.setdefault(tuple(entry), []).append(entry)
    for keys, entries in by_keys.items():
        steps = [entry.get("step", 0) for entry in entries]
        if "train_runtime" in keys:  # the summary at the end of training
            continue
        for key in keys:
            is_metric = key not in _BOOKKEEPING and ("/" in key or not key.endswith(_TIMINGS))
            if is_metric and (metrics is None or metrics.fullmatch(key)):
                column = columns.setdefault(key, ([], []))
                column[0].extend(steps)
                column[1].extend([entry[key] for entry in entries])
    series, not_finite = {}, {}
    for key, (steps, values) in columns.items():
        if any(isinstance(value, (list, dict)) for value in values[:1]):
            continue
        array, at = np.array(values), np.array(steps, dtype=np.int64)
        if array.dtype.kind not in "fiu":
            continue  # what another callback logged beside the numbers
        finite = np.isfinite(array)
        if not finite.all():
            not_finite[key] = int((~finite).sum())
        order = np.argsort(at[finite], kind="stable")
        if finite.any():
            series[key] = Series(at[finite][order], array[finite][order].astype(np.float64))
    return series, not_finite
