"""Two objectives at odds: MODPO's front beside that of loss-weighted DPO and of soups of single-objective models.

    python benchmarks/repro/pareto.py [--quick] [--seeds 5] [--output runs/repro]

Zhou et al. 2023 (arXiv:2310.03708, section 4): one MODPO run for each weight w gives fronts as good as or better than
loss weighting and soups. Every answer pair carries a label of each objective, so that all methods see the same data.
MODPO takes the preferences of objective 0 and, for objective 1, either the implicit reward of a model trained on it by
DPO (as the paper has it) or the true reward. Loss weighting is DPO on the rows of both labels with row weights
w and 1 - w. All maximise w r_0 + (1 - w) r_1 - beta KL, whose best possible value is known.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import results
import tiny
from world import Row, World

PAIRS, STEPS, BETA = 1536, 96, 0.3
WEIGHTS = (0.25, 0.5, 0.75)  # of objective 0
METHODS = ("MODPO", "MODPO, true margin", "loss weighting", "soup")


def labelled(world: World, count: int, objective: int, rewards: tuple[int, ...] = ()) -> list[Row]:
    """Returns the pairs as one objective labels them; the answers are the same for every objective."""
    return world.pairs(count, objectives=(objective,) * 3, rewards=rewards)


@cache
def single(objective: int, seed: int, work: Path, quick: bool) -> Any:
    """Returns DPO's model of one objective alone, kept in ``work`` where MODPO finds it as a frozen scorer."""
    world, base, (count, steps) = World(seed), tiny.start(seed, work, quick=quick), sizes(quick)
    model = tiny.tuned(base, labelled(world, count, objective), {"name": "dpo", "beta": BETA}, seed, work, steps)
    model.save_pretrained(work / f"single_{objective}_{seed}")
    return model


def sizes(quick: bool) -> tuple[int, int]:
    """Returns numbers of pairs and steps."""
    return (64, 2) if quick else (PAIRS, STEPS)


def modpo(weight: float, seed: int, work: Path, quick: bool, *, true_margin: bool) -> Any:
    """Returns MODPO's model: preferences of objective 0, margins of objective 1."""
    world, base, (count, steps) = World(seed), tiny.start(seed, work, quick=quick), sizes(quick)
    loss: dict[str, Any] = {"name": "modpo", "beta": BETA, "weights": [weight, 1 - weight]}
    if true_margin:
        return tiny.tuned(base, labelled(world, count, 0, rewards=(1,)), loss, seed, work, steps)
    single(1, seed, work, quick)
    scorers = {"other": str(work / f"single_1_{seed}")}
    loss["scorers"] = ["other"]
    return tiny.tuned(base, labelled(world, count, 0), loss, seed, work, steps, scorers=scorers)


def loss_weighting(weight: float, seed: int, work: Path, quick: bool) -> Any:
    """Returns DPO's model of the rows of both labels; batches are twice as large, so every row is met as often."""
    world, base, (count, steps) = World(seed), tiny.start(seed, work, quick=quick), sizes(quick)
    rows = [
        row | {"weight": 2 * share}
        for objective, share in ((0, weight), (1, 1 - weight))
        for row in labelled(world, count, objective)
    ]
    loss = {"name": "dpo", "beta": BETA}
    return tiny.tuned(base, rows, loss, seed, work, steps, per_device_train_batch_size=32)


def soup(weight: float, seed: int, work: Path, quick: bool) -> Any:
    """Returns the weighted mean of the weights of both single-objective models."""
    first, second = (single(objective, seed, work, quick).state_dict() for objective in (0, 1))
    model = copy.deepcopy(single(0, seed, work, quick))
    model.load_state_dict({name: weight * first[name] + (1 - weight) * second[name] for name in first})
    return model


def model_of(method: str, weight: float, seed: int, work: Path, quick: bool) -> Any:
    """Returns the model of a method at a weight."""
    if method == "single":
        return single(0 if weight == 1 else 1, seed, work, quick)
    if method == "loss weighting":
        return loss_weighting(weight, seed, work, quick)
    if method == "soup":
        return soup(weight, seed, work, quick)
    return modpo(weight, seed, work, quick, true_margin="true" in method)


def run(method: str, weight: float, seed: int, work: Path, quick: bool) -> Row:
    """Returns both rewards, KL, the value that all methods maximise, and the best possible one."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    prompts = world.prompts(tiny.PROMPTS if not quick else 32, "test")
    found = tiny.measure(model_of(method, weight, seed, work, quick), base, world, prompts)
    (first, second, _), kl, _ = world.best(1 / BETA, (weight, 1 - weight), prompts)
    return {
        **found,
        "value": weight * found["reward_0"] + (1 - weight) * found["reward_1"] - BETA * found["kl"],
        "best_value": weight * first + (1 - weight) * second - BETA * kl,
    }


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    runs = results.Runs(chosen.output / "repro_pareto.csv", ("method", "weight", "seed"))
    weights = (0.5,) if chosen.quick else WEIGHTS
    for seed in range(chosen.seeds):
        plan = [("single", 1.0), ("single", 0.0), *((m, w) for w in weights for m in METHODS)]
        for method, weight in plan:
            key = {"method": method, "weight": weight, "seed": seed}
            runs.run(lambda key=key: run(**key, work=chosen.output / "work", quick=chosen.quick), **key)
        single.cache_clear()
    conclude(runs, weights, chosen)
    return runs


# ---- fronts ------------------------------------------------------------------------------------------------------


def hypervolume(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Returns the area that the points dominate above and to the right of ``corner``.

    >>> hypervolume([(1.0, 3.0), (2.0, 2.0), (1.5, 1.0)], (0.0, 0.0))  # 1 * 3 + 1 * 2
    5.0
    """
    area, reached = 0.0, corner[0]
    for x, y in sorted(points):
        higher = max(other for place, other in points if place >= x)
        if x > reached and higher > corner[1]:
            area += (x - reached) * (higher - corner[1])
            reached = x
        assert y <= higher
    return area


def front(runs: results.Runs, method: str, seed: int) -> list[tuple[float, float]]:
    """Returns the rewards of a method's models and of both single-objective ones."""
    rows = runs.pick(method=method, seed=seed) + runs.pick(method="single", seed=seed)
    return [(row["reward_0"], row["reward_1"]) for row in rows]


def conclude(runs: results.Runs, weights: Sequence[float], chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure. The corner of a seed's hypervolumes is what each single model neglects."""
    claims, seeds = results.Claims(), range(chosen.seeds)
    areas: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in seeds:
        singles = [(row["reward_0"], row["reward_1"]) for row in runs.pick(method="single", seed=seed)]
        corner = (min(x for x, _ in singles), min(y for _, y in singles))
        for method in METHODS:
            areas[method].append(hypervolume(front(runs, method, seed), corner))
    for ours in METHODS[:2]:
        for other in METHODS[2:]:
            differences = [a - b for a, b in zip(areas[ours], areas[other], strict=True)]
            claims.add(f"hypervolume of {ours} less that of {other}", differences)
            for weight in weights:
                mine, theirs = (
                    [row["value"] for row in runs.pick(method=method, weight=weight)] for method in (ours, other)
                )
                differences = [a - b for a, b in zip(mine, theirs, strict=True)]
                claims.add(f"w r_0 + (1 - w) r_1 - beta KL at w = {weight:g} of {ours} less {other}", differences)
    for method in METHODS:
        claims.note(f"hypervolume: {method}", areas[method])
        for weight in weights:
            rows = runs.pick(method=method, weight=weight)
            claims.note(
                f"short of the best possible at w = {weight:g}: {method}", [r["best_value"] - r["value"] for r in rows]
            )
    claims.write(chosen.output / "repro_pareto_claims.csv")
    draw(runs, weights, chosen.output)


def draw(runs: results.Runs, weights: Sequence[float], folder: Path) -> None:
    """Draws the mean fronts, and how far each method stays behind the best possible value."""
    figure, (fronts, short) = results.panels(2)
    for method in METHODS:
        places = [("single", 0.0), *((method, weight) for weight in weights), ("single", 1.0)]
        columns = [
            [results.interval([row[c] for row in runs.pick(method=m, weight=w)])[0] for m, w in places]
            for c in ("reward_0", "reward_1")
        ]
        fronts.plot(*columns, marker="o", markersize=4, label=method)
        rows = [row | {"short": row["best_value"] - row["value"]} for row in runs.pick(method=method)]
        results.band(short, rows, "weight", "short", method)
    fronts.set(xlabel="reward of objective 0", ylabel="reward of objective 1", title="mean fronts over seeds")
    short.set(xlabel="w", title="short of the best possible w r_0 + (1 - w) r_1 - beta KL")
    for axis in (fronts, short):
        axis.legend(fontsize=7)
        axis.title.set_fontsize(9)
    results.save(figure, folder / "repro_pareto.png")


if __name__ == "__main__":
    main()
