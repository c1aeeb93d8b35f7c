"""Sweeps: losses x hyper-parameters x seeds from one file, each a run of its own; what is missing is run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.checkpoints import write_whole
from alignlab.config import (
    AUTO,
    DECIDED,
    RunConfig,
    Values,
    block_of,
    find_config,
    load_config,
    parse_yaml,
    read_yaml,
    unknown_key,
    write_yaml,
)

KEYS = ("config", "output_dir", "set", "runs", "grid", "launcher")
_LONGEST_NAME = 120
_FILE = re.compile(rf"(?!configs$)[^./\\\x00-\x1f][^/\\\x00-\x1f]{{,{_LONGEST_NAME - 1}}}")
# What may differ between a run as it was and as the sweep says: how far it is, where it is, what is said of it.
NOT_THE_RUN = (
    *("output_dir", "resume_from_checkpoint", "run_name", "logging_dir"),
    *("report", "report_samples", "disable_tqdm", "progress", "progress_seconds", "score_cache_dir"),
    *("data_cache_dir", "data_workers"),
)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its name, which is that of its folder, its resolved config, and the keys it changes."""

    name: str
    folder: Path
    config: RunConfig
    changes: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "metrics.json").is_file()

    @property
    def state(self) -> str:
        """Either "done", "begun" where a checkpoint is there to go on from, or "missing"."""
        if self.is_done:
            return "done"
        return "begun" if any(self.folder.glob("checkpoint-*")) else "missing"


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked: every run's config loads.

    Attributes:
        file: where it was read from.
        folder: holds a folder for each run, ``configs/`` and ``report.html``.
        runs: in the order of the file, the grid's last key changing fastest.
        launcher: the words that start a module of Python, empty for this interpreter.
    """

    file: Path
    folder: Path
    runs: tuple[SweepRun, ...]
    launcher: str = ""

    def write_configs(self) -> None:
        """Writes the resolved config of each run to ``configs/NAME.yaml``."""
        folder = self.folder / "configs"
        folder.mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            write_whole(folder / f"{run.name}.yaml", run.config.to_yaml())  # which a job may be reading now

    def config_file(self, run: SweepRun) -> Path:
        """Returns where ``write_configs`` writes the config of a run."""
        return self.folder / "configs" / f"{run.name}.yaml"


@dataclass
class _File:
    """The keys of a sweep's file, with their types checked."""

    config: str
    output_dir: str
    set: Values = field(default_factory=dict)
    runs: list[Values] = field(default_factory=lambda: [{}])
    grid: dict[str, list[Any]] = field(default_factory=dict)
    launcher: str = ""


def load_sweep(path: str | Path) -> Sweep:
    """Reads a sweep and checks every run of it, without loading a model or data.

    Raises:
        ValueError: an unknown key, a run whose config is wrong (naming the dotted key), two runs of one name, or a
            folder in which a run with another config was made.
        FileNotFoundError: no such sweep, or no such config.
    """
    path = find_config(path)
    values = _checked(path)
    base = read_yaml(find_config(values.config))
    folder = Path(values.output_dir)
    runs: list[SweepRun] = []
    for index, listed in enumerate(values.runs):
        listed = dict(listed)
        name = listed.pop("name", None)
        for combination in itertools.product(*values.grid.values()):
            chosen = dict(zip(values.grid, combination, strict=True))
            where = f"{path}: runs[{index}]" + (f" with {_words(chosen)}" if chosen else "")
            own = flat(listed) | chosen
            run_name = "-".join(filter(None, [name or _slug(flat(listed)), _slug(chosen)])) or "run"
            runs.append(make_run(where, base, [values.set, listed, chosen], own, folder, run_name))
    names = [run.name for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: these runs are there twice: {', '.join(sorted(twice))}; give them a name each")
    return Sweep(path, folder, tuple(runs), values.launcher)


def _checked(path: Path) -> _File:
    values = read_yaml(path)
    for key in values:
        if key == "search":
            raise ValueError(f"{path}: search: this file is a search, which load_search reads")
        if key not in KEYS:
            raise ValueError(f"{path}: {unknown_key(str(key), KEYS)}")
    for key in ("config", "output_dir"):
        if not isinstance(values.get(key), str):
            raise ValueError(f"{path}: {key}: expected text, found {values.get(key)!r}")
    for key, kind in (("set", dict), ("grid", dict), ("runs", list), ("launcher", str)):
        if key in values and not isinstance(values[key], kind):
            named = {dict: "a mapping", list: "a list of mappings", str: "text"}[kind]
            raise ValueError(f"{path}: {key}: expected {named}, found {values[key]!r}")
    for where, keys in _said(values):
        for key in keys:
            if not isinstance(key, str) or key == "output_dir":
                why = "each run has a folder of its own in the sweep's" if key == "output_dir" else "a key is text"
                raise ValueError(f"{path}: {where}.{key}: {why}")
    for key, choices in values.get("grid", {}).items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{path}: grid.{key}: expected a list of values, found {choices!r}")
    for index, one in enumerate(values.get("runs", [])):
        if not isinstance(one, dict):
            raise ValueError(f"{path}: runs[{index}]: expected a mapping of keys to values, found {one!r}")
        if (name := one.get("name")) is not None and (not isinstance(name, str) or not _FILE.fullmatch(name)):
            raise ValueError(
                f"{path}: runs[{index}].name: expected a name for a folder of at most {_LONGEST_NAME} characters, "
                f"without / and no dot in front, other than configs; found {name!r}"
            )
    if values.get("runs") == []:
        raise ValueError(f"{path}: runs: an empty list; leave the key out to run the grid alone")
    return _File(**values)


def _said(values: Values) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yields the keys that a sweep's file sets, by where they stand."""
    yield from ((name, values.get(name, {})) for name in ("set", "grid"))
    yield from ((f"runs[{index}]", one) for index, one in enumerate(values.get("runs", [])) if isinstance(one, dict))


def make_run(where: str, base: Values, layers: list[Values], own: Values, folder: Path, name: str) -> SweepRun:
    """Returns the run that a config becomes with layers of changes, the last one the strongest.

    Args:
        where: begins the message of an error.
        own: the changes that are the run's own.

    Raises:
        ValueError: the config is wrong, or the folder holds another run.
    """
    values = copy.deepcopy(base)
    try:
        for layer in layers:
            for key, value in layer.items():
                at, last = block_of(values, str(key))  # a key without dots replaces the whole block
                at[last] = copy.deepcopy(value)
        values["output_dir"] = str(folder / name)
        config = load_config(values)
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error
    run = SweepRun(name, folder / name, config, own)
    _check_same(run, where)
    return run


def _check_same(run: SweepRun, where: str) -> None:
    """Refuses a folder whose run was another one: what is there would be taken for what the sweep asks for."""
    written = run.folder / "config.yaml"
    if not written.is_file():
        return
    before, now = flat(read_yaml(written)), flat(parse_yaml(run.config.to_yaml(), where))
    for key in {**before, **now}:
        if key in DECIDED and now.get(key) in (AUTO, None):
            continue  # what stands there is what the machine made of it
        if key.split(".")[0] not in NOT_THE_RUN and before.get(key) != now.get(key):
            raise ValueError(
                f"{where}: {run.folder} holds a run with {key}: {before.get(key)!r}, and the sweep says "
                f"{now.get(key)!r}; choose another output_dir, or move that folder away"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Returns nested mappings as dotted key -> value."""
    result: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _words(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in chosen.items())


def _slug(changes: Mapping[str, Any]) -> str:
    """Returns a name that tells changes apart and is a file's: ``dpo-beta_0.1-seed_0``."""
    parts = []
    for key, value in changes.items():
        short = re.sub(r"^loss\.", "", key)
        parts.append(str(value) if short == "name" else f"{short}_{value}")
    name = re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(write_yaml(changes).encode(), digest_size=4).hexdigest()
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"
