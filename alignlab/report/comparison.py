"""The charts of several runs: curves one over the other, and what the runs trade against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .drawing import Chart, Line
from .records import RunRecord
from .sicknesses import kl_metric

# What a comparison draws, tabulates or judges by; reading the rest of many long logs would take half as long again.
COMPARED = re.compile(
    r"eval_.*|loss|grad_norm|rewards/.*|logps/.*|logps_per_token/chosen|lengths/.*|speed/tokens_per_second|memory/.*"
    r"|group/.*accuracy|(.*[_/])?kl",
    re.DOTALL,
)
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


def comparison_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Returns the curves of several runs one over the other, and their frontiers; each loss has its colour."""
    colours = {name: index for index, name in enumerate(dict.fromkeys(run.loss for run in runs))}
    charts = [
        *(_together(runs, colours, *spec) for spec in _TOGETHER),
        *(_frontier(runs, colours, one) for one in TRADE_OFFS if len(one.points(runs)) > 1),
    ]
    return [chart for chart in charts if chart]


def _together(runs: Sequence[RunRecord], colours: dict[str, int], metric: str, title: str, y_label: str) -> Chart:
    shown = [run for run in runs if metric in run.series]
    lines, labelled = [], set[str]()
    each = len(shown) <= 8  # more names than that are no legend
    for index, run in enumerate(shown):
        series = run.series[metric]
        label = run.name if each else ("" if run.loss in labelled else run.loss)
        labelled.add(run.loss)
        lines.append(Line(label, series.steps, series.values, index if each else colours[run.loss]))
    key = re.sub(r"\W", "_", metric)
    return Chart(key, title, "" if each else "One line a run, one colour a loss.", y_label, lines)


# ---- what runs trade against each other --------------------------------------------------------------------------


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


def kl(run: RunRecord) -> float | None:
    """The best measure of KL(policy || reference) that was logged, nats an answer."""
    found = kl_metric(run)
    return None if found is None else found[1]


@dataclass(frozen=True)
class TradeOff:
    """What a frontier shows: a cost, of which less is better, against a gain, and what the axes are called."""

    key: str
    title: str
    x_label: str
    y_label: str
    cost: Callable[[RunRecord], float | None]
    gain: Callable[[RunRecord], float | None]

    def points(self, runs: Sequence[RunRecord]) -> list[tuple[RunRecord, float, float]]:
        """Returns the runs that measured both, each with its cost and its gain."""
        both = [(run, self.cost(run), self.gain(run)) for run in runs]
        return [(run, cost, gain) for run, cost, gain in both if cost is not None and gain is not None]


_KL, _FALL = "KL to the reference, nats an answer", "fall of the chosen log-probability, nats"
TRADE_OFFS = (
    TradeOff("accuracy_kl", "Accuracy against KL", _KL, "accuracy, held out", kl, accuracy),
    TradeOff("wins_kl", "Wins against KL", _KL, "win rate", kl, wins),
    TradeOff("reward_kl", "Reward against KL", _KL, "reward of answers", kl, reward),
    TradeOff("accuracy_fall", "Accuracy against displacement", _FALL, "accuracy", fall, accuracy),
    TradeOff(
        "worst_accuracy", "Worst group against all", "1 - accuracy of all", "accuracy of the worst group", error, worst
    ),
)


def _frontier(runs: Sequence[RunRecord], colours: dict[str, int], trade_off: TradeOff) -> Chart:
    points, lines = trade_off.points(runs), []
    for loss, colour in colours.items():
        own = [(cost, gain) for run, cost, gain in points if run.loss == loss]
        if own:
            costs, gains = np.array(own, dtype=float).T
            lines.append(Line(loss, costs, gains, colour, "points"))
    best = [points[index] for index in pareto([cost for _, cost, _ in points], [gain for _, _, gain in points])]
    if len(best) > 1:
        edge = np.array([(cost, gain) for _, cost, gain in best], dtype=float).T
        lines.append(Line("Pareto front", edge[0], edge[1], 7, "steps"))
    note = f"On the Pareto front, by rising cost: {', '.join(run.name for run, _, _ in best)}."
    marks = [(run.name, cost, gain) for run, cost, gain in best[:8]]
    return Chart(trade_off.key, trade_off.title, note, trade_off.y_label, lines, trade_off.x_label, marks)


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
