"""Few good examples and wrong labels: KTO on unpaired, unbalanced rows; smoothed DPO and IPO under flipped labels.

    python benchmarks/repro/noise.py [--quick] [--seeds 5] [--output runs/repro]

Ethayarajh et al. 2024 (arXiv:2402.01306, section 4): KTO keeps up with DPO on the pairs although a row says only
whether it is good, even where up to 90% of the good rows are gone. Chowdhury et al. 2024 (arXiv:2403.00409) and
Mitchell 2023: a loss that knows the share of flipped labels resists them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import results
import tiny
from world import Row, World

PAIRS, STEPS, BETA = 1536, 96, 0.3
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of desirable rows
NOISE = (0.0, 0.2, 0.4, 0.1, 0.3)


def unpaired(pairs: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Returns one row of each pair: its chosen completion for that share of the pairs, else its rejected one."""
    chosen = set(random.Random(f"unpaired {seed}").sample(range(len(pairs)), round(share * len(pairs))))
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good}
        for good, pair in ((number in chosen, pair) for number, pair in enumerate(pairs))
    ]


def kto(share: float, balanced: bool) -> dict[str, Any]:
    """Returns KTO, weighted so that both labels count the same where ``balanced``."""
    weights = {"desirable_weight": min(1.0, (1 - share) / share), "undesirable_weight": min(1.0, share / (1 - share))}
    return {"name": "kto", "beta": BETA, **(weights if balanced else {})}


def smoothed(method: str, noise: float) -> dict[str, Any]:
    """Returns a loss of pairs that knows the share of flipped labels, if it is one that uses it."""
    return {
        "DPO": {"name": "dpo", "beta": BETA},
        "cDPO": {"name": "dpo", "beta": BETA, "label_smoothing": noise},
        "robust DPO": {"name": "dpo", "beta": BETA, "label_smoothing": noise, "smoothing": "robust"},
        "IPO": {"name": "ipo", "beta": BETA / 3, "normalise": "sum"},
    }[method]


def plan(quick: bool) -> list[tuple[str, str, float]]:
    """Returns the runs of a seed: (part, method, level)."""
    shares, levels = (SHARES[:1], NOISE[1:2]) if quick else (SHARES, NOISE)
    balance = [("balance", method, share) for share in shares for method in ("KTO", "KTO unweighted")]
    pairs = [("balance", "DPO all pairs", 1.0), ("balance", "DPO half the pairs", 0.5)]
    noise = [("noise", m, level) for level in levels for m in ("DPO", "cDPO", "robust DPO", "IPO")]
    return [
        one
        for one in [*pairs, *balance, *noise]
        if one[1:] not in (("KTO unweighted", 0.5), ("cDPO", 0.0), ("robust DPO", 0.0))  # the same as their neighbour
    ]


def train(part: str, method: str, level: float, seed: int, count: int, steps: int, work: Path, quick: bool) -> Row:
    """Trains one method; returns the reward of its answers."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    pairs = world.pairs(count, flipped=level if part == "noise" else 0.0)
    if method.startswith("KTO"):
        model = tiny.tuned(base, unpaired(pairs, level, seed), kto(level, method == "KTO"), seed, work, steps)
    else:
        pairs = pairs[: round(level * count)] if part == "balance" else pairs
        loss = smoothed("DPO" if part == "balance" else method, level)
        model = tiny.tuned(base, pairs, loss, seed, work, steps)
    return tiny.measure(model, base, world, world.prompts(tiny.PROMPTS if not quick else 32, "test"))


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    count, steps = (64, 2) if chosen.quick else (PAIRS, STEPS)
    runs = results.Runs(chosen.output / "repro_noise.csv", ("part", "method", "level", "seed"))
    for seed in range(chosen.seeds):
        for part, method, level in plan(chosen.quick):
            key = {"part": part, "method": method, "level": level, "seed": seed}
            runs.run(
                lambda key=key: train(**key, count=count, steps=steps, work=chosen.output / "work", quick=chosen.quick),
                **key,
            )
    conclude(runs, chosen)
    return runs


def rewards(runs: results.Runs, method: str, level: float, part: str) -> list[float]:
    """Returns the reward of a run for each seed."""
    method = "DPO" if level == 0 and method in ("cDPO", "robust DPO") else method
    return [row["reward_0"] for row in runs.pick(part=part, method=method, level=level)]


def shortfalls(runs: results.Runs, method: str, level: float, part: str) -> list[float]:
    """Returns, for each seed, by how much the reward is below the best possible one at the KL that the run has."""
    values = []
    for row in runs.pick(part=part, method=method, level=level):
        world = World(row["seed"])
        values.append(world.best_reward(row["kl"], world.prompts(tiny.PROMPTS, "test")) - row["reward_0"])
    return values


def levels(runs: results.Runs, part: str, method: str) -> list[float]:
    """Returns the levels at which a method was run."""
    return sorted({row["level"] for row in runs.pick(part=part, method=method)})


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure."""
    claims = results.Claims()
    figures = ((rewards, "reward"), (shortfalls, "reward short of the best at its own KL"))
    for (figure, words), (other, level) in product(figures, (("DPO all pairs", 1.0), ("DPO half the pairs", 0.5))):
        base = figure(runs, other, level, "balance")
        for share in levels(runs, "balance", "KTO"):
            differences = [a - b for a, b in zip(figure(runs, "KTO", share, "balance"), base, strict=True)]
            claims.add(f"{words} of KTO at {share:.0%} desirable less that of {other}", differences)
    for share in levels(runs, "balance", "KTO unweighted"):
        both = zip(
            rewards(runs, "KTO", share, "balance"), rewards(runs, "KTO unweighted", share, "balance"), strict=True
        )
        claims.add(f"reward of KTO at {share:.0%} desirable less that without weights", [a - b for a, b in both])
    for figure, words in figures:
        for level in levels(runs, "noise", "cDPO"):
            base = figure(runs, "DPO", level, "noise")
            for method in ("cDPO", "robust DPO", "IPO"):
                differences = [a - b for a, b in zip(figure(runs, method, level, "noise"), base, strict=True)]
                claims.add(f"{words} of {method} less that of DPO at {level:.0%} flipped labels", differences)
    claims.write(chosen.output / "repro_noise_claims.csv")
    draw(runs, chosen.output)


def draw(runs: results.Runs, folder: Path) -> None:
    """Draws reward over the share of desirable rows, and over the share of flipped labels."""
    figure, (balance, noise) = results.panels(2)
    for method in ("KTO", "KTO unweighted"):
        results.band(balance, runs.pick(part="balance", method=method), "level", "reward_0", method)
    for method, level in (("DPO all pairs", 1.0), ("DPO half the pairs", 0.5)):
        mean, low, high = results.interval(rewards(runs, method, level, "balance"))
        line = balance.axhline(mean, linestyle="--", linewidth=1, label=method, color="k" if level == 1 else "grey")
        balance.axhspan(low, high, color=line.get_color(), alpha=0.1)
    balance.set(xlabel="share of desirable rows", ylabel="reward", title="KTO on one row a pair")
    for method in ("DPO", "cDPO", "robust DPO", "IPO"):
        results.band(noise, runs.pick(part="noise", method=method), "level", "reward_0", method)
    noise.set(xlabel="share of flipped labels", title="wrong labels")
    for axis in (balance, noise):
        axis.legend(fontsize=7)
    results.save(figure, folder / "repro_noise.png")


if __name__ == "__main__":
    main()
