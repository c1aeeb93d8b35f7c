"""HyPO under partial coverage: does a KL term on fresh samples keep a policy near its reference where pairs are few?

    python benchmarks/repro/hybrid.py [--quick] [--seeds 3] [--output runs/repro]

Song et al. 2024 (arXiv:2406.01462): where offline pairs do not cover the answers of the policy, DPO may raise what no
pair speaks of, and its KL to the reference is unbounded; HyPO adds a KL term on samples of the policy. Here the
answers of the pairs hold none but half of the words. Claimed: a lower KL, and answers that are better formed. Of the
reward at equal KL nothing is claimed: its shortfall from the best possible one is printed beside.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
import tiny
from world import LENGTH, WORDS, Row, World

PAIRS, STEPS, BETA, RATE = 1024, 128, 0.1, 5e-4
WEIGHTS = (0.0, 0.001, 0.01)
COVERED = 12  # of the 24 words


def covered(world: World, count: int) -> list[Row]:
    """Returns pairs whose answers hold none but half of the words, labelled by the first objective."""
    rng = random.Random(f"covered {world.seed}")
    words = sorted(rng.sample(range(len(WORDS)), COVERED))
    weights = world.transitions[:, words].tolist()

    def answer(prompt: str) -> str:
        word, found = WORDS.index(prompt.split()[-1]), []
        for _ in range(LENGTH):
            [word] = rng.choices(words, weights[word])
            found.append(WORDS[word])
        return " ".join(found)

    rows = []
    for prompt in world.prompts(count, "covered"):
        both = sorted((answer(prompt), answer(prompt)), key=lambda text: -world.rewards(text)[0])
        gap = world.rewards(both[0])[0] - world.rewards(both[1])[0]
        good, bad = both if rng.random() < 1 / (1 + math.exp(-gap)) else both[::-1]
        turns = {"prompt": ("user", prompt), "chosen": ("assistant", good), "rejected": ("assistant", bad)}
        rows.append({name: [{"role": role, "content": text}] for name, (role, text) in turns.items()})
    return rows


def train(weight: float, seed: int, work: Path, quick: bool) -> Row:
    """Trains DPO with a KL term of this weight; returns what its answers are like."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    count, steps = (64, 2) if quick else (PAIRS, STEPS)
    loss: dict[str, Any] = {"name": "dpo", "beta": BETA}
    if weight:
        loss = {"name": "hypo", "beta": BETA, "weight": weight}
    model = tiny.tuned(
        base, covered(world, count), loss, seed, work, steps, learning_rate=RATE, online_max_new_tokens=16
    )
    prompts = world.prompts(tiny.PROMPTS if not quick else 32, "test")
    found = tiny.measure(model, base, world, prompts)
    return {**found, "shortfall": world.best_reward(found["kl"], prompts) - found["reward_0"]}


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words, seeds=3)
    tiny.quiet()
    runs = results.Runs(chosen.output / "repro_hybrid.csv", ("weight", "seed"))
    for seed in range(chosen.seeds):
        for weight in WEIGHTS[::2] if chosen.quick else WEIGHTS:
            key = {"weight": weight, "seed": seed}
            runs.run(lambda key=key: train(**key, work=chosen.output / "work", quick=chosen.quick), **key)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims."""
    claims = results.Claims()
    plain = runs.pick(weight=0.0)
    for weight in sorted({row["weight"] for row in runs.rows} - {0.0}):
        both = list(zip(plain, runs.pick(weight=weight), strict=True))
        claims.note(f"KL of HyPO at weight {weight:g}", [row["kl"] for _, row in both])
        claims.add(f"KL of DPO less that of HyPO at weight {weight:g}", [dpo["kl"] - own["kl"] for dpo, own in both])
        claims.add(
            f"well-formed answers of HyPO at weight {weight:g} less those of DPO",
            [own["formed"] - dpo["formed"] for dpo, own in both],
        )
        claims.note(
            f"shortfall from the best reward at its own KL, DPO less HyPO at weight {weight:g}",
            [dpo["shortfall"] - own["shortfall"] for dpo, own in both],
        )
    claims.note("KL of DPO", [row["kl"] for row in plain])
    claims.write(chosen.output / "repro_hybrid_claims.csv")


if __name__ == "__main__":
    main()
