"""The tables of a report: key figures, data, what tells runs apart, and means over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .records import RunRecord
from .sicknesses import change, diagnose, generated_lengths, kl_metric

Rows = list[tuple[Any, ...]]
_HELD_OUT = (  # metric, what a page calls it
    ("loss", "loss, held out"),
    ("rewards/accuracies", "accuracy, held out"),
    ("rewards/margins", "margin, held out"),
    ("group/worst_accuracy", "worst group, held out"),
    ("calibration/brier", "Brier score, held out"),
    ("length/longer_wins", "longer answer has more reward, held out"),
    ("length/longer_chosen", "longer answer is chosen, held out"),
    ("generation/reward", "reward of answers"),
    ("generation/win_rate", "win rate of answers"),
)
_FIGURES = (
    ("loss", "loss in training"),
    ("rewards/accuracies", "accuracy in training"),
    ("speed/tokens_per_second", "completion tokens / s"),
    ("memory/peak_gb", "peak memory, GB"),
    ("train_runtime", "seconds of training"),
)
_SEEDS = ("seed", "data_seed")
_PLACES = ("output_dir", "logging_dir", "run_name", "score_cache_dir", "data_cache_dir", "data_workers")
MOST_DIFFERENCES = 60


def format_value(value: Any) -> str:
    """Returns a value as a table shows it: numbers to four digits, the rest as YAML would have it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def figures_of(run: RunRecord) -> dict[str, float]:
    """Returns the figures by which a run is known at a glance, at its end."""
    found = {label: run.held_out(metric) for metric, label in _HELD_OUT}
    found |= {label: run.last(metric) for metric, label in _FIGURES}
    chosen, lengths, kl = change(run.series.get("logps/chosen")), generated_lengths(run), kl_metric(run)
    found["chosen log-prob., change"] = None if chosen is None else chosen.rise
    found["KL to reference, nats"] = None if kl is None else kl[1]
    found["tokens an answer, before"] = None if lengths is None else lengths[0]
    found["tokens an answer, after"] = None if lengths is None else lengths[1]
    return {label: value for label, value in found.items() if value is not None}


def key_figures(run: RunRecord) -> list[tuple[str, str]]:
    """Returns label and text of a run's figures."""
    return [(label, format_value(float(value))) for label, value in figures_of(run).items()]


def runs_table(runs: Sequence[RunRecord]) -> tuple[list[str], Rows]:
    """Returns head and rows of the table of runs: one a run, a column for each figure that any of them has."""
    figures = [figures_of(run) for run in runs]
    labels = list(dict.fromkeys(label for one in figures for label in one))
    rows = []
    for run, own in zip(runs, figures, strict=True):
        state = f"{run.step} of {run.max_steps}" if run.max_steps else str(run.step)
        findings = ", ".join(one.name for one in diagnose(run)[0])
        values = [format_value(own[label]) if label in own else "" for label in labels]
        rows.append((run.name, run.loss, state if run.finished else f"{state}, not finished", *values, findings))
    return ["run", "loss", "steps", *labels, "findings"], rows


def data_tables(run: RunRecord) -> tuple[Rows, list[tuple[str, Rows]]]:
    """Returns the table of sets, and for each set that was read a table of what reading found."""
    sets = run.data.get("sets") or {}
    rows = [(name, one.get("rows", ""), one.get("fingerprint", "")) for name, one in sets.items()]
    reports = []
    for name, report in (run.data.get("reports") or {}).items():
        found: Rows = []
        for key, value in report.items():
            if key == "sources":
                found += [(f"source {one.get('name')}", _source(one)) for one in value]
            elif value not in (0, [], "", None):
                found.append((key.replace("_", " "), format_value(value)))
        reports.append((name, found))
    return rows, reports


def _source(one: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{one[key]} {key.removeprefix('rows_')}" for key in one if key.startswith("rows_"))
    return f"rows: {counts}; weight {format_value(one.get('weight', 1.0))}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested mappings as dotted key -> text."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = format_value(value)
    return result


def config_differences(runs: Sequence[RunRecord]) -> tuple[list[str], Rows]:
    """Returns head and rows of what tells the runs' configs and environments apart, folders left out.

    Few runs stand side by side, a column each. Of more than eight, each key has its values and how many runs have them.
    """
    settings = [flat({**run.config, "environment": run.environment}) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one if name not in _PLACES))
    differing = [name for name in names if len({one.get(name) for one in settings}) > 1][:MOST_DIFFERENCES]
    if len(runs) <= 8:
        return ["", *(run.name for run in runs)], [
            (name, *(one.get(name, "") for one in settings)) for name in differing
        ]
    rows: Rows = []
    for name in differing:
        values = [one.get(name, "(not given)") for one in settings]
        counts = [f"{value} ({values.count(value)} runs)" for value in dict.fromkeys(values)]
        rows.append((name, ", ".join(counts[:20]) + (f", and {len(counts) - 20} more" if len(counts) > 20 else "")))
    return ["key", "values"], rows


def over_seeds(runs: Sequence[RunRecord]) -> tuple[list[str], Rows]:
    """Returns head and rows of means with standard errors over runs that differ in seeds and folders alone.

    Empty where no two runs do.
    """
    settings = [flat(run.config) for run in runs]
    cells: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, one in enumerate(settings):
        key = tuple((name, text) for name, text in one.items() if name not in (*_SEEDS, *_PLACES))
        cells.setdefault(key, []).append(index)
    if not any(len(members) > 1 for members in cells.values()):
        return [], []
    telling = [name for name in dict(next(iter(cells))) if len({dict(key).get(name) for key in cells}) > 1]
    figures = [figures_of(run) for run in runs]
    labels = list(dict.fromkeys(label for one in figures for label in one))
    rows: Rows = []
    for key, members in cells.items():
        setting = ", ".join(f"{name}: {dict(key)[name]}" for name in telling if name in dict(key))
        values = [_mean([figures[index][label] for index in members if label in figures[index]]) for label in labels]
        rows.append((setting or runs[members[0]].loss, len(members), *values))
    return ["setting", "runs", *labels], rows


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    mean = format_value(float(np.mean(values)))
    return f"{mean} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2g}" if len(values) > 1 else mean
