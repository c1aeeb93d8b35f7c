"""Three groups of unequal size on the tiny language model: DPO and IPO, plain, evenly weighted and group-robust.

    python benchmarks/repro/groups.py [--quick] [--seeds 5] [--output runs/repro]

Ramesh et al. 2024 (arXiv:2405.20304, section 5.2) claim a better worst group than plain training and importance
weighting. The topic of a prompt is its group: 70%, 22% and 8% of the pairs, each labelled by its own objective.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
import tiny
from world import TOPICS, Row, World

PAIRS, STEPS = 2048, 128
SHARES = (0.70, 0.22, 0.08)
BASES = {"DPO": {"name": "dpo", "beta": 0.3}, "IPO": {"name": "ipo", "beta": 0.3, "normalise": "sum"}}
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "IS-": {"weighting": "fixed"},  # every group the same say
    "GR-": {"weighting": "adaptive"},
}
METHODS = tuple(prefix + base for base in BASES for prefix in WEIGHTINGS)
STEP_SIZES = {"DPO": 0.1, "IPO": 0.02}  # of the adversary: IPO's losses are about five times as large


def loss_of(method: str) -> dict[str, Any]:
    """Returns the loss of a method."""
    prefix, base = method[:-3], method[-3:]
    if not prefix:
        return BASES[base]
    options = WEIGHTINGS[prefix] | ({"step_size": STEP_SIZES[base]} if prefix == "GR-" else {})
    return {"name": "group_robust", "base": BASES[base], **options}


def train(method: str, seed: int, work: Path, quick: bool) -> Row:
    """Trains one method; returns held-out loss, accuracy and gained reward of each group and of the worst one."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    count, steps, held_out = (64, 2, 48) if quick else (PAIRS, STEPS, 768)
    objectives = (0, 1, 2)
    trained = world.pairs(count, "groups", objectives=objectives, shares=SHARES)
    even = world.pairs(held_out, "groups heldout", objectives=objectives)
    model = copy.deepcopy(base)
    trainer = tiny.fit(model, trained, loss_of(method), seed, work, steps, eval_rows=even)
    metrics = trainer.evaluate()
    row: Row = {}
    for index, topic in enumerate(TOPICS):
        prompts = world.prompts(256 if not quick else 16, f"test {topic}", tuple(float(t == topic) for t in TOPICS))
        before, after = (tiny.measure(one, base, world, prompts)[f"reward_{index}"] for one in (base, model))
        row |= {
            f"loss_{index}": metrics[f"eval_group/{topic}/loss"],
            f"accuracy_{index}": metrics[f"eval_group/{topic}/accuracy"],
            f"gain_{index}": after - before,
            f"weight_{index}": metrics.get(f"eval_group/{topic}/weight", float("nan")),
        }
    groups = range(len(TOPICS))
    row["worst_loss"] = max(row[f"loss_{index}"] for index in groups)
    row["worst_accuracy"] = min(row[f"accuracy_{index}"] for index in groups)
    row["worst_gain"] = min(row[f"gain_{index}"] for index in groups)
    row["mean_gain"] = sum(share * row[f"gain_{index}"] for index, share in enumerate(SHARES))
    return row


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    runs = results.Runs(chosen.output / "repro_groups.csv", ("method", "seed"))
    for seed in range(chosen.seeds):
        for method in METHODS:
            key = {"method": method, "seed": seed}
            runs.run(lambda key=key: train(**key, work=chosen.output / "work", quick=chosen.quick), **key)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure."""
    claims = results.Claims()
    signs = {"worst_loss": -1, "worst_accuracy": 1, "worst_gain": 1, "mean_gain": 1}
    for base in BASES:
        for figure, sign in signs.items():
            for other in (base, f"IS-{base}"):
                both = zip(runs.pick(method=f"GR-{base}"), runs.pick(method=other), strict=True)
                words = f"{figure} of GR-{base} better than that of {other}, by"
                claims.add(words, [sign * (a[figure] - b[figure]) for a, b in both])
    claims.write(chosen.output / "repro_groups_claims.csv")
    draw(runs, chosen.output)


def draw(runs: results.Runs, folder: Path) -> None:
    """Draws held-out loss and gained reward by group."""
    figure, axes = results.panels(3)
    for axis, (figure_name, base) in zip(axes, (("loss", "DPO"), ("loss", "IPO"), ("gain", "")), strict=True):
        methods = [method for method in METHODS if method.endswith(base)]
        for number, method in enumerate(methods):
            for index in range(len(TOPICS)):
                values = [row[f"{figure_name}_{index}"] for row in runs.pick(method=method)]
                mean, low, high = results.interval(values)
                place = index + 0.8 * number / len(methods)
                label = method if index == 0 else None
                errors = [[mean - low], [high - mean]]
                axis.errorbar(place, mean, errors, fmt="o", color=f"C{METHODS.index(method)}", label=label)
        axis.set_xticks(range(len(TOPICS)), [f"{share:.0%}" for share in SHARES])
        title = f"held-out {base} loss" if base else "gain in reward"
        axis.set(xlabel="share of the group in training", title=f"{title} by group")
        axis.legend(fontsize=6)
    results.save(figure, folder / "repro_groups.png")


if __name__ == "__main__":
    main()
