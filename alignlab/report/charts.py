"""The charts of a report: which curves of a run stand together, and where runs stand beside one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .drawing import Chart, Line
from .records import RunRecord, Series
from .sicknesses import kl_metric

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


# ---- several runs ------------------------------------------------------------------------------------------------


def comparison_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Returns the curves of several runs one over the other, and their frontiers; each loss has its colour."""
    colours = {name: index for index, name in enumerate(dict.fromkeys(run.loss for run in runs))}
    charts = [
        *(_together(runs, colours, *spec) for spec in _TOGETHER),
        *(_frontier(runs, colours, *spec) for spec in frontiers(runs)),
    ]
    return [chart for chart in charts if chart]


_TOGETHER = (
    ("loss", "Loss in training", "loss"),
    ("rewards/accuracies", "Preference accuracy in training", "accuracy"),
    ("eval_rewards/accuracies", "Preference accuracy, held out", "accuracy"),
    ("rewards/margins", "Margin in training", "reward"),
    ("logps/chosen", "Log-probability of the chosen completions", "nats"),
    ("logps/rejected", "Log-probability of the rejected completions", "nats"),
    ("group/worst_accuracy", "Accuracy of the worst group", "accuracy"),
    ("speed/tokens_per_second", "Throughput", "completion tokens / s"),
)


def _together(runs: Sequence[RunRecord], colours: dict[str, int], metric: str, title: str, y_label: str) -> Chart:
    shown = [run for run in runs if metric in run.series]
    lines, labelled = [], set[str]()
    each = len(shown) <= 8  # more names than that are no legend
    for index, run in enumerate(shown):
        series = run.series[metric]
        label = run.name if each else ("" if run.loss in labelled else run.loss)
        labelled.add(run.loss)
        lines.append(_line(series, label, index if each else colours[run.loss]))
    key = re.sub(r"\W", "_", metric)
    return Chart(key, title, "" if each else "One line a run, one colour a loss.", y_label, lines)


# What a comparison draws, tabulates or judges by; reading the rest of many long logs would take half as long again.
COMPARED = re.compile(
    r"eval_.*|loss|grad_norm|rewards/.*|logps/.*|logps_per_token/chosen|lengths/.*|speed/tokens_per_second|memory/.*"
    r"|group/.*accuracy|(.*[_/])?kl",
    re.DOTALL,
)

_Value = Callable[[RunRecord], float | None]
_Spec = tuple[str, str, str, str, _Value, _Value]  # key, title, x label, y label, x, y (more is better)


def frontiers(runs: Sequence[RunRecord]) -> list[_Spec]:
    """Returns the trade-offs that at least two of the runs measured: cost (less is better) against gain."""
    kl: _Value = lambda run: None if (found := kl_metric(run)) is None else found[1]  # noqa: E731
    candidates: list[_Spec] = [
        (
            "accuracy_kl",
            "Accuracy against KL",
            "KL to the reference, nats an answer",
            "accuracy, held out",
            kl,
            accuracy,
        ),
        ("wins_kl", "Wins against KL", "KL to the reference, nats an answer", "win rate", kl, wins),
        ("reward_kl", "Reward against KL", "KL to the reference, nats an answer", "reward of answers", kl, reward),
        (
            "accuracy_fall",
            "Accuracy against displacement",
            "fall of the chosen log-probability, nats",
            "accuracy",
            fall,
            accuracy,
        ),
        (
            "worst_accuracy",
            "Worst group against all",
            "1 - accuracy of all",
            "accuracy of the worst group",
            error,
            worst,
        ),
    ]
    return [one for one in candidates if sum(one[4](run) is not None and one[5](run) is not None for run in runs) > 1]


def accuracy(run: RunRecord) -> float | None:
    """Accuracy at the end: on held-out pairs if there are any, else in training."""
    held_out = run.held_out("rewards/accuracies")
    return run.last("rewards/accuracies") if held_out is None else held_out


def error(run: RunRecord) -> float | None:
    """One minus the accuracy."""
    found = accuracy(run)
    return None if found is None else 1 - found


def worst(run: RunRecord) -> float | None:
    """Accuracy of the worst group at the end: on held-out pairs if there are any, else in training."""
    held_out = run.held_out("group/worst_accuracy")
    return run.last("group/worst_accuracy") if held_out is None else held_out


def reward(run: RunRecord) -> float | None:
    """Mean reward of generated answers, if a judge gave any."""
    return run.held_out("generation/reward")


def wins(run: RunRecord) -> float | None:
    """Share of generated answers that a judge prefers to the chosen completion, ties half, if one judged."""
    return run.held_out("generation/win_rate")


def fall(run: RunRecord) -> float | None:
    """How far the chosen completions' log-probability fell in training, nats; negative where it rose."""
    series = run.series.get("logps/chosen")
    if series is None or len(series.values) < 2:
        return None
    return float(series.values[0] - series.values[-1])


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Returns the points of the Pareto front, by rising cost: no other has less or equal cost and more gain.

    Of points equal in both, the first counts.
    """
    order = np.lexsort((-np.asarray(gain), np.asarray(cost)))
    front: list[int] = []
    for index in order:
        if not front or gain[index] > gain[front[-1]]:
            front.append(int(index))
    return front


def _frontier(
    runs: Sequence[RunRecord],
    colours: dict[str, int],
    key: str,
    title: str,
    x_label: str,
    y_label: str,
    x: _Value,
    y: _Value,
) -> Chart:
    points = [(run, cost, gain) for run in runs if (cost := x(run)) is not None and (gain := y(run)) is not None]
    lines = []
    for loss, colour in colours.items():
        own = [(cost, gain) for run, cost, gain in points if run.loss == loss]
        if own:
            costs, gains = np.array(own, dtype=float).T
            lines.append(Line(loss, costs, gains, colour, "points"))
    front = pareto([cost for _, cost, _ in points], [gain for _, _, gain in points])
    best = [points[index] for index in front]
    if len(best) > 1:
        edge = np.array([(cost, gain) for _, cost, gain in best], dtype=float).T
        lines.append(Line("Pareto front", edge[0], edge[1], 7, "steps"))
    marks = [(run.name, cost, gain) for run, cost, gain in best[:8]]
    names = ", ".join(run.name for run, _, _ in best)
    return Chart(key, title, f"On the Pareto front, by rising cost: {names}.", y_label, lines, x_label, marks)
