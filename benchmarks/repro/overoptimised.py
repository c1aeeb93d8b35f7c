"""A reward model that is wrong in one respect, followed ever farther: when does the true reward turn?

    python benchmarks/repro/overoptimised.py [--quick] [--seeds 3] [--output runs/repro]

Gao et al. 2023 (arXiv:2210.10760): as a policy is driven along a learned reward model its score rises on and on, while
the true ("gold") reward peaks and falls; more preferences move the peak up. Here people dislike repeats: the gold
reward is the sum of the worths of an answer's words less 2 for every word that follows itself or, in the other kind,
that stands in the answer already. The reward model is the logistic fit of word counts to n labelled pairs, which sees
no repeat. The policies are the exact maxima of
``strength * reward model - KL``, so that all that goes wrong is the reward model's doing; gold reward, score and KL
are exact too. No language model is trained.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import results
import torch
from torch import Tensor
from words import fitted
from world import VOCABULARY, Row, World

SIZES = (128, 512, 2048)
KINDS = ("next", "anywhere")  # a word repeats the one before it, or any before it
PENALTY = 2.0  # what a repeat costs in the gold reward
STRENGTHS = tuple(2 ** (power / 4) for power in range(-12, 33))  # 1/8 to 256
PROMPTS = 512
PEAK = (8.0, 14.0)  # nats of KL between which the peak is to lie


def repeats(answer: str, kind: str) -> int:
    """Returns how many words of an answer repeat the one before them, or any before them.

    >>> repeats("w1 w2 w2 w1", "next"), repeats("w1 w2 w2 w1", "anywhere")
    (1, 2)
    """
    words = answer.split()
    return sum(a == b for a, b in pairwise(words)) if kind == "next" else len(words) - len(set(words))


def labelled(world: World, count: int, kind: str) -> list[Row]:
    """Returns pairs of answers of the chain, labelled by the gold reward as Bradley and Terry have it."""
    rng = random.Random(f"gold {world.seed}")

    def gold(turns: list[dict[str, str]]) -> float:
        return world.rewards(turns[0]["content"])[0] - PENALTY * repeats(turns[0]["content"], kind)

    rows = []
    for row in world.lists(count, 2, "gold"):
        first, second = row["completions"]
        wins = rng.random() < 1 / (1 + math.exp(gold(second) - gold(first)))
        chosen, rejected = (first, second) if wins else (second, first)
        rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


def figures(world: World, policies: Sequence[Tensor], learned: Tensor, state: Tensor, kind: str) -> Row:
    """Returns KL to the chain, score of the reward model, gold reward and repeats of a policy's answers, all exact.

    Repeats of the word before are ``sum_t sum_s P(s_t = s) q_t(s | s)``, those of any word are
    ``places - sum_w P(w stands in the answer)``; ``unseen[w, s]`` is the probability of being at word ``s`` without
    having met ``w``. The words of the prompt are not repeated.
    """
    kl, score, worth, again = 0.0, 0.0, 0.0, 0.0
    unseen = state.repeat(VOCABULARY, 1)
    for place, policy in enumerate(policies):
        kl += float(state @ (policy * (policy.clamp(min=1e-300).log() - world.transitions.log())).sum(-1))
        again += float(state @ policy.diagonal()) if place else 0.0
        state = state @ policy
        score += float(learned @ state)
        worth += float(world.worth[0] @ state)
        unseen = (unseen @ policy).fill_diagonal_(0.0)
    found = again if kind == "next" else len(policies) - float((1 - unseen.sum(-1)).sum())
    return {"kl": kl, "score": score, "gold": worth - PENALTY * found, "repeats": found}


def curve(kind: str, size: int, seed: int, quick: bool) -> list[Row]:
    """Returns the figures of the best policies by a reward model of so many pairs, from weak to strong."""
    world = World(seed)
    state, learned = (
        world.before(world.prompts(PROMPTS, "test")),
        fitted(labelled(world, size // 16 if quick else size, kind)),
    )
    rows = []
    for strength in STRENGTHS[::11] if quick else STRENGTHS:
        policies = world.tilted(strength, learned)
        rows.append({"strength": strength, **figures(world, policies, learned, state, kind)})
    return rows


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words, seeds=3)
    torch.set_num_threads(1)
    runs = results.Runs(chosen.output / "repro_overoptimised.csv", ("kind", "size", "seed"))
    for seed, kind, size in product(range(chosen.seeds), KINDS, SIZES):
        runs.run(partial(curve, kind, size, seed, chosen.quick), kind=kind, size=size, seed=seed)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure."""
    claims = results.Claims()
    seeds = sorted({row["seed"] for row in runs.rows})
    for kind in KINDS:
        tops = {}
        for size in SIZES:
            curves = [runs.pick(kind=kind, size=size, seed=seed) for seed in seeds]
            peaks, ends = [max(rows, key=lambda row: row["gold"]) for rows in curves], [rows[-1] for rows in curves]
            of, tops[size] = f"{size} pairs, repeats {kind}", [row["gold"] for row in peaks]
            claims.note(f"gold reward at its peak: {of}", tops[size])
            claims.note(f"KL at the peak: {of}", [row["kl"] for row in peaks])
            claims.add(f"that KL less {PEAK[0]:g} nats: {of}", [row["kl"] - PEAK[0] for row in peaks])
            claims.add(f"{PEAK[1]:g} nats less that KL: {of}", [PEAK[1] - row["kl"] for row in peaks])
            claims.note(f"gold reward at the end: {of}", [row["gold"] for row in ends])
            claims.add(f"the end lies below 0 by: {of}", [-row["gold"] for row in ends])
            rises = [end["score"] - peak["score"] for end, peak in zip(ends, peaks, strict=True)]
            claims.add(f"score at the end less that at the peak: {of}", rises)
        for small, large in pairwise(SIZES):
            rises = [more - less for less, more in zip(tops[small], tops[large], strict=True)]
            claims.add(f"gold peak of {large} pairs less that of {small}: repeats {kind}", rises)
    claims.write(chosen.output / "repro_overoptimised_claims.csv")
    draw(runs, chosen.output)


def draw(runs: results.Runs, folder: Path) -> None:
    """Draws the gold reward over KL for both kinds of repeats, and the score over KL for the first; a curve a seed."""
    figure, panels = results.panels(3)
    sides = [("gold", kind, f"gold reward, repeats {kind}") for kind in KINDS]
    sides += [("score", KINDS[0], f"score of the reward model, repeats {KINDS[0]}")]
    for axis, (column, kind, title) in zip(panels, sides, strict=True):
        for (index, size), seed in product(enumerate(SIZES), sorted({row["seed"] for row in runs.rows})):
            rows = runs.pick(kind=kind, size=size, seed=seed)
            label = f"{size} pairs" if seed == 0 else None
            axis.plot([row["kl"] for row in rows], [row[column] for row in rows], color=f"C{index}", label=label)
        axis.set(xlabel="KL, nats", title=title)
        axis.legend(fontsize=7)
    results.save(figure, folder / "repro_overoptimised.png")


if __name__ == "__main__":
    main()
