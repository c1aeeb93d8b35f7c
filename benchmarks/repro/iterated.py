"""Rounds of sampling, judging and training against offline pairs, at as many labels and as many steps.

    python benchmarks/repro/iterated.py [--quick] [--seeds 5] [--output runs/repro]

Xiong et al. 2024 (arXiv:2312.11456) and Dong et al. 2024 (arXiv:2405.07863) claim that DPO on pairs of the policy's own
answers, labelled round by round, beats DPO on a fixed set. Here 1,024 labels are spent in four rounds of 256, each on
pairs of the policy as it is by then, with the start as the reference and a fresh optimiser; or at once on pairs of the
start itself ("on-policy"), or on pairs that hold half of the words only ("off-policy", those of hybrid.py). Rounds also
begin their learning rate anew, so "on-policy in parts" has the start's pairs in four parts as well, all else as in
rounds: what rounds gain on it is due to fresh answers alone.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import results
import tiny
from frontier import beside_best, start, values_at
from hybrid import covered
from world import LENGTH, Row, World

from alignlab.sampling import generate, texts

LABELS, STEPS, ROUNDS, RATE = 1024, 128, 4, 5e-4
BETA = 0.1
METHODS = ("rounds", "on-policy", "on-policy in parts", "off-policy")
KL = 2.0  # nats at which methods are compared
FARTHER, BETTER, SHARE = 0.5, 0.8, 0.05  # what is to be gained at the end, at 2 nats, and to be equal within


def own_pairs(model: Any, world: World, count: int, stream: str) -> list[Row]:
    """Returns pairs of the model's own answers to fresh prompts, labelled as Bradley and Terry have it.

    Equal answers are left out, and so are those without an end; other prompts take their places.
    """
    words, rng = tiny.tokenizer(), random.Random(f"labels {stream} {world.seed}")
    prompts = [[{"role": "user", "content": prompt}] for prompt in world.prompts(2 * count, f"own {stream}")]
    seed = rng.randrange(2**31)
    answers = generate(model, words, prompts * 2, sample=True, max_new_tokens=LENGTH + 4, seed=seed)
    ended = [answer.completion[-1] == words.eos_token_id for answer in answers]
    written, half, rows = texts(words, answers), len(prompts), []
    for index, prompt in enumerate(prompts):
        first, second = written[index], written[half + index]
        if not (ended[index] and ended[half + index]) or first == second or not (first and second):
            continue
        gap = world.rewards(first)[0] - world.rewards(second)[0]
        chosen, rejected = (first, second) if rng.random() < 1 / (1 + math.exp(-gap)) else (second, first)
        turns = {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", chosen), ("rejected", rejected))
        }
        rows.append({"prompt": prompt, **turns})
    return rows[:count]


def train(method: str, seed: int, work: Path, quick: bool) -> list[Row]:
    """Spends all labels; returns what answers are like after each quarter of the steps; ``pairs``: of that training."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    labels, steps = (64, 8) if quick else (LABELS, STEPS)
    prompts = world.prompts(32 if quick else tiny.PROMPTS, "test")
    model, part, found = copy.deepcopy(base), steps // ROUNDS, []

    def fit(rows: Sequence[Row], steps: int, before: int = 0) -> None:
        def watch(step: int, policy: Any) -> None:
            if step % part == 0:
                place = {"step": before * part + step, **beside_best(policy, base, world, prompts)}
                found.append(place | {"pairs": len(rows)})

        own: dict[str, Any] = {"learning_rate": RATE, "ref_model_name_or_path": str(work / f"start_{seed}")}
        tiny.fit(model, rows, {"name": "dpo", "beta": BETA}, seed, work, steps, watch=watch, **own)

    if method == "rounds":
        for number in range(ROUNDS):
            fit(own_pairs(model, world, labels // ROUNDS, f"round {number}"), part, number)
        return found
    rows = covered(world, labels) if method == "off-policy" else own_pairs(base, world, labels, "start")
    if method == "on-policy in parts":
        for number in range(ROUNDS):
            fit(rows[number::ROUNDS], part, number)
    else:
        fit(rows, steps)
    return found


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    work = chosen.output / "work"
    runs = results.Runs(chosen.output / "repro_iterated.csv", ("method", "seed"))
    for seed in range(chosen.seeds):
        runs.run(lambda seed=seed: {**start(seed, work, chosen.quick), "pairs": 0}, method="start", seed=seed)
        for method in METHODS:
            runs.run(partial(train, method, seed, work, chosen.quick), method=method, seed=seed)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims; at equal KL a seed counts where the ways of both methods reach it."""
    claims, last = results.Claims(), max(row["step"] for row in runs.rows)
    at_kl = {method: values_at(runs, method, KL, "reward_0") for method in METHODS}
    best = {method: values_at(runs, method, KL, "best_reward") for method in METHODS}
    ends = {method: runs.pick(method=method, step=last) for method in METHODS}
    for method in METHODS:
        if rewards := [value for value in at_kl[method] if value is not None]:
            claims.note(f"reward of {method} at {KL:g} nats", rewards)
        for column in ("reward_0", "kl", "formed"):
            claims.note(f"{column} of {method} at the end", [row[column] for row in ends[method]])
    for method in METHODS[1:]:
        more = [one["reward_0"] - other["reward_0"] for one, other in zip(ends["rounds"], ends[method], strict=True)]
        claims.add(f"reward of rounds less that of {method} pairs at the end", more)
        claims.note("the least of these gains", [min(more)])
        if method == "on-policy":
            claims.add(f"that gain less {FARTHER:g}", [one - FARTHER for one in more])
        both = [
            (one - other, one / top - other / peak)
            for one, other, top, peak in zip(at_kl["rounds"], at_kl[method], best["rounds"], best[method], strict=True)
            if one is not None and other is not None and top and peak
        ]
        if both:
            gains, shares = (list(values) for values in zip(*both, strict=True))
            claims.add(f"reward of rounds less that of {method} pairs at {KL:g} nats", gains)
            if method == "off-policy":
                claims.add(f"that gain at {KL:g} nats less {BETTER:g}", [gain - BETTER for gain in gains])
            else:
                claims.note(f"share of the best reward at {KL:g} nats, rounds less {method}", shares)
                near = [SHARE - abs(share) for share in shares]
                claims.add(f"{SHARE:g} less the size of that difference: {method}", near)
    claims.write(chosen.output / "repro_iterated_claims.csv")


if __name__ == "__main__":
    main()
