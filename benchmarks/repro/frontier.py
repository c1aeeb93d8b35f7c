"""Reward against KL, where the best possible trade-off is known: seven losses, each over its betas.

    python benchmarks/repro/frontier.py [--quick] [--seeds 5] [--output runs/repro]

Rafailov et al. 2023 (arXiv:2305.18290, figure 2) draw such frontiers for DPO; Zeng et al. 2024 (arXiv:2404.11999)
claim that TDPO, its second variant above all, gets more reward at equal KL and keeps more diversity. Every run is
measured three times on its way, as in those figures.
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import results
import tiny
from world import Row, World

PAIRS, STEPS, POINTS = 1024, 64, (16, 32, 64)
BETAS = (0.1, 0.3, 1.0, 3.0)
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {  # options of the loss, its betas
    "DPO": ({"name": "dpo"}, BETAS),
    "IPO": ({"name": "ipo", "normalise": "sum"}, (0.02, 0.05, 0.1, 0.3)),
    "KTO": ({"name": "kto"}, BETAS),
    "ORPO": ({"name": "orpo"}, (0.5, 2.0, 8.0, 32.0)),
    "TDPO1": ({"name": "tdpo", "variant": 1}, BETAS),
    "TDPO2": ({"name": "tdpo", "variant": 2, "alpha": 0.5}, (0.01, 0.03, 0.1, 0.3)),  # it keeps closer than the others
    "SimPO": ({"name": "simpo"}, (2.0, 5.0, 10.0, 30.0)),
}
LEVELS = (1.0, 2.0, 3.0)  # nats of KL at which frontiers are compared


def loss_of(method: str, beta: float) -> dict[str, Any]:
    """Returns the loss; SimPO's target margin is 0.3 beta, as in its recipes."""
    margin = {"gamma": 0.3 * beta} if method == "SimPO" else {}
    return {**METHODS[method][0], "beta": beta, **margin}


def train(method: str, beta: float, seed: int, work: Path, quick: bool) -> list[Row]:
    """Trains one loss; returns reward, KL, entropy and diversity at each point of its way."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    count, steps, points = (64, 2, (2,)) if quick else (PAIRS, STEPS, POINTS)
    prompts = world.prompts(tiny.PROMPTS if not quick else 32, "test")
    rows: list[Row] = []

    def watch(step: int, model: Any) -> None:
        if step in points:
            rows.append({"step": step, **beside_best(model, base, world, prompts)})

    batch = 32 if method == "KTO" else 16  # its rows are single completions: so it reads as many as the others
    loss = loss_of(method, beta)
    tiny.tuned(base, world.pairs(count), loss, seed, work, steps, watch=watch, per_device_train_batch_size=batch)
    return rows


def start(seed: int, work: Path, quick: bool) -> Row:
    """Returns the figures of the supervised start itself."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    prompts = world.prompts(tiny.PROMPTS if not quick else 32, "test")
    return {"step": 0, **beside_best(base, base, world, prompts)}


def beside_best(model: Any, base: Any, world: World, prompts: Sequence[str]) -> Row:
    """Returns what sampled answers are like, and the best possible reward at their KL."""
    measured = tiny.measure(model, base, world, prompts)
    return {**measured, "best_reward": world.best_reward(measured["kl"], list(prompts))}


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    work = chosen.output / "work"
    runs = results.Runs(chosen.output / "repro_frontier.csv", ("method", "beta", "seed"))
    for seed in range(chosen.seeds):
        runs.run(lambda seed=seed: start(seed, work, chosen.quick), method="start", beta=0.0, seed=seed)
        for method, (_, betas) in METHODS.items():
            for beta in betas[-2:-1] if chosen.quick else betas:
                key = {"method": method, "beta": beta, "seed": seed}
                runs.run(lambda key=key: train(**key, work=work, quick=chosen.quick), **key)
    conclude(runs, chosen)
    return runs


# ---- frontiers ---------------------------------------------------------------------------------------------------


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points (KL, value) of rising KL that no point of less KL outdoes.

    >>> frontier([(1.0, 2.0), (0.5, 1.0), (2.0, 1.5)])
    [(0.5, 1.0), (1.0, 2.0)]
    """
    kept: list[tuple[float, float]] = []
    for kl, value in sorted(points):
        if not kept or value > kept[-1][1]:
            kept.append((kl, value))
    return kept


def at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Returns the value of a piecewise linear curve at ``kl``, None beyond its ends.

    >>> at([(0.0, 0.0), (1.0, 2.0), (3.0, 3.0)], 2.0)
    2.5
    """
    right = bisect.bisect_left([point[0] for point in points], kl)
    if right == len(points) or (right == 0 and points[0][0] > kl):
        return None
    (x, y), (x_next, y_next) = points[max(right - 1, 0)], points[right]
    return y + (y_next - y) * (kl - x) / (x_next - x) if x_next > x else y_next


def values_at(runs: results.Runs, method: str, kl: float, column: str) -> list[float | None]:
    """Returns, for each seed, a column at ``kl`` along the points of the method's frontier of reward over KL.

    Between points it is linear in the square root of the KL, as the best possible reward is near the start: linear in
    the KL itself, a method whose first point lies farther out would be wronged.
    """
    values = []
    for seed in sorted({row["seed"] for row in runs.rows}):
        rows = runs.pick(method="start", seed=seed) + runs.pick(method=method, seed=seed)
        best = {point[0] for point in frontier([(row["kl"], row["reward_0"]) for row in rows])}
        points = sorted((math.sqrt(row["kl"]), row[column]) for row in rows if row["kl"] in best)
        values.append(at(points, math.sqrt(kl)))
    return values


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure; a seed counts where the frontiers of both losses reach the KL."""
    claims = results.Claims()
    for column, words in (("reward_0", "reward"), ("entropy", "entropy"), ("distinct_4", "distinct 4-grams")):
        for kl, method in product(LEVELS, METHODS):
            others = {"TDPO2": ("DPO", "TDPO1")}.get(method, ("DPO",) if column == "reward_0" else ())
            for other in (one for one in others if one != method):
                both = zip(values_at(runs, method, kl, column), values_at(runs, other, kl, column), strict=True)
                differences = [a - b for a, b in both if a is not None and b is not None]
                if differences:
                    claims.add(f"{words} of {method} less that of {other} at {kl:g} nats", differences)
    for kl, method in product(LEVELS, METHODS):
        both = zip(values_at(runs, method, kl, "reward_0"), values_at(runs, method, kl, "best_reward"), strict=True)
        shares = [a / b for a, b in both if a is not None and b is not None]
        if shares:
            claims.note(f"share of the best possible reward at {kl:g} nats: {method}", shares)
    for method in METHODS:
        ends = runs.pick(method=method, step=max(row["step"] for row in runs.rows))
        for beta in sorted({row["beta"] for row in ends}):
            claims.note(f"KL of {method} at the end, beta {beta:g}", [row["kl"] for row in ends if row["beta"] == beta])
    claims.write(chosen.output / "repro_frontier_claims.csv")
    draw(runs, chosen.output)


def draw(runs: results.Runs, folder: Path) -> None:
    """Draws all points, the mean frontiers beside the best possible one, and entropy over KL."""
    figure, (points, means, diversity) = results.panels(3)
    seeds = sorted({row["seed"] for row in runs.rows})
    grid = [0.25 * number for number in range(1, 21)]
    for method in METHODS:
        rows = runs.pick(method=method)
        dots = points.scatter([row["kl"] for row in rows], [row["reward_0"] for row in rows], s=8, label=method)
        for axis, column in ((means, "reward_0"), (diversity, "entropy")):
            curve = [(kl, values_at(runs, method, kl, column)) for kl in grid]
            reached = [(kl, [v for v in values if v is not None]) for kl, values in curve if None not in values]
            places, averages = [kl for kl, _ in reached], [results.interval(values)[0] for _, values in reached]
            axis.plot(places, averages, label=method, color=dots.get_facecolor()[0])
    worlds = [(World(seed), World(seed).prompts(tiny.PROMPTS, "test")) for seed in seeds]
    best = [results.interval([world.best_reward(kl, prompts) for world, prompts in worlds])[0] for kl in grid]
    for axis in (points, means):
        axis.plot(grid, best, "k--", linewidth=1, label="best possible")
    points.set(title="every run at three steps", xlabel="KL to the start, nats", ylabel="reward", xlim=(0, 8))
    means.set(title="mean frontier over seeds", xlabel="KL to the start, nats")
    diversity.set(title="entropy along the frontiers, nats", xlabel="KL to the start, nats")
    for axis in (points, means, diversity):
        axis.legend(fontsize=6)
    results.save(figure, folder / "repro_frontier.png")


if __name__ == "__main__":
    main()
