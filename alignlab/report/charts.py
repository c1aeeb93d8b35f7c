"""The charts of one run: which of its curves stand together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .drawing import Chart, Line
from .records import RunRecord, Series

_Names = Sequence[tuple[str, str]]  # metric, label


def run_charts(run: RunRecord) -> list[Chart]:
    """Returns the charts of one run, those for which it logged something."""
    charts = [
        _curves(run, "loss", "Loss", "Mean over the rows since the last log.", "loss", [("loss", "training")]),
        _curves(
            run,
            "accuracy",
            "Preference accuracy",
            "Share of pairs whose chosen completion has the higher reward; 0 where policy and reference are equal.",
            "accuracy",
            [("rewards/accuracies", "training")],
        ),
        _curves(
            run,
            "rewards",
            "Margins and rewards",
            "The reward of a completion as the loss defines it; the margin is chosen minus rejected.",
            "reward",
            [("rewards/margins", "margin"), ("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")],
        ),
        _curves(
            run,
            "ranking",
            "Ranking of lists",
            "Top-1: share of lists whose best completion has the highest reward. NDCG: 1 where rewards order lists as "
            "their scores do.",
            "",
            [("rewards/top1", "top-1"), ("rewards/ndcg", "NDCG")],
        ),
        _displacement(run),
        *_groups(run),
        _curves(
            run,
            "lengths",
            "Length of the completions",
            "Tokens that count in the loss. These are the data's completions, not the model's answers.",
            "tokens",
            [("lengths/chosen", "chosen"), ("lengths/rejected", "rejected")],
        ),
        _one(run, "tokens_per_second", "Throughput", "speed/tokens_per_second", "completion tokens / s", _WALL),
        _one(run, "rows_per_second", "Throughput in rows", "speed/rows_per_second", "rows / s", _WALL),
        _one(run, "memory", "Peak memory", "memory/peak_gb", "GB", "The largest of all ranks since the start."),
        _one(run, "learning_rate", "Learning rate", "learning_rate", "learning rate", ""),
        _one(run, "grad_norm", "Norm of the gradient", "grad_norm", "norm", "Before clipping."),
        *_others(run),
    ]
    return [chart for chart in charts if chart]


_WALL = "Over all ranks, wall time between two logs; evaluation is left out."


def _curves(run: RunRecord, key: str, title: str, note: str, y_label: str, names: _Names) -> Chart:
    """A chart of metrics from training (solid), and from each evaluation set (dashed, in the same colours)."""
    lines = []
    for index, (metric, label) in enumerate(names):
        if metric in run.series:
            lines.append(_line(run.series[metric], label, index))
    sets = run.evaluation_sets
    for place, prefix in enumerate(sets):
        for index, (metric, label) in enumerate(names):
            series = run.series.get(prefix + metric)
            if series:
                held_out = _set_label(prefix) if len(names) == 1 else f"{label}, {_set_label(prefix)}"
                colour = index if len(names) > 1 else place + 1
                lines.append(_line(series, held_out, colour, "dashed"))
    return Chart(key, title, note, y_label, lines)


def _set_label(prefix: str) -> str:
    name = prefix.removeprefix("eval_").removesuffix("_")
    return f"held out: {name}" if name else "held out"


def _line(series: Series, label: str, colour: int, style: str = "line") -> Line:
    return Line(label, series.steps, series.values, colour, style)


def _one(run: RunRecord, key: str, title: str, metric: str, y_label: str, note: str) -> Chart:
    series = run.series.get(metric)
    return Chart(key, title, note, y_label, [_line(series, "", 0)] if series else [])


def _displacement(run: RunRecord) -> Chart:
    lines = []
    for prefix, style in (("", "line"), *((one, "dashed") for one in run.evaluation_sets)):
        for colour, name in ((2, "chosen"), (5, "rejected")):
            series = run.series.get(f"{prefix}logps/{name}")
            if series and len(series.values) > 1:
                label = f"{name}, {_set_label(prefix)}" if prefix else name
                moved = Series(series.steps, series.values - series.values[0])
                lines.append(_line(moved, label, colour, style))
    note = "Change of summed log-probability since the first log. Batches differ, so it jumps. Both often fall."
    return Chart("displacement", "Likelihood displacement", note, "nats since the start", lines)


_GROUP_CHARTS = (
    ("accuracy", "Accuracy by group", "accuracy", "Share of pairs told apart, in each group."),
    ("loss", "Loss by group", "loss", "Mean loss of each group's rows, unweighted."),
    ("margin", "Margin by group", "reward", "Mean margin of each group's pairs."),
    ("weight", "Weights of the groups", "weight", "What the adversary gives each group; they sum to 1."),
)


def _groups(run: RunRecord) -> list[Chart]:
    charts = []
    for kind, title, y_label, note in _GROUP_CHARTS:
        found = [re.fullmatch(rf"group/(.*)/{kind}", name, re.DOTALL) for name in run.series]
        names = [(match[0], match[1]) for match in found if match]
        charts.append(_curves(run, f"group_{kind}", title, note, y_label, sorted(names)))
    return charts


_KNOWN = re.compile(
    r"(eval_.*)?(loss|learning_rate|grad_norm|group/.*|(rewards|logps|logps_per_token|lengths|speed|memory)/.*)",
    re.DOTALL,
)


def _others(run: RunRecord) -> list[Chart]:
    """Every other metric of the log, those with the same words before the last slash in one chart."""
    families: dict[str, list[tuple[str, str]]] = {}
    for name in dict.fromkeys(_trained_name(run, one) for one in sorted(run.series) if not _KNOWN.fullmatch(one)):
        family, _, label = name.rpartition("/")
        families.setdefault(family or name, []).append((name, label))
    charts = []
    for index, (family, names) in enumerate(families.items()):
        title = names[0][0] if len(names) == 1 else family
        named = [(names[0][0], "training")] if len(names) == 1 else names
        charts.append(_curves(run, f"other_{index}", title, "", "", named))
    return charts


def _trained_name(run: RunRecord, name: str) -> str:
    """Returns the name in training of a metric that an evaluation logged too; other names as they are."""
    trained = (name.removeprefix(prefix) for prefix in run.evaluation_sets)
    return next((one for one in trained if one != name and one in run.series), name)
