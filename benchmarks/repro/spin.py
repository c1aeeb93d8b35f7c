"""SPIN: does a model that is set against its own answers come nearer to the data with every round?

    python benchmarks/repro/spin.py [--quick] [--seeds 5] [--output runs/repro]

Chen et al. 2024 (arXiv:2401.01335): each round the demonstrations are preferred to what the model of the round before
answers to the same prompts, and that model is the reference; supervised training on the same demonstrations is said
to gain nothing more. Here the data are a known chain, so KL(data || policy) is exact at each word. Each round has the
next 512 demonstrations; the supervised start has seen the first 1,280 of them, as in the paper. The control goes on
with supervised training on the same demonstrations, with as many steps of as many rows at the same rate. The start is
a supervised one of 40 steps, some 2 nats from the data: after the 300 steps of the other programs it is 0.2 nats from
them, and little is left to gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import results
import tiny
import torch
from world import LENGTH, WORDS, Row, World

from alignlab.sampling import generate, texts

ROUNDS, STEPS, BATCH, RATE = 3, 32, 16, 5e-4
METHODS = {"SPIN, beta 5": 5.0, "SFT": 0.0, "SPIN, beta 0.1": 0.1}
SFT: Row = {"name": "sft", "data": "labelled"}
START_STEPS, START_RATE, START_BATCH = 40, 3e-3, 32
FALL = 0.15  # share of the start's KL that all rounds together should take away


def data_kl(model: Any, world: World, rows: Sequence[Row]) -> float:
    """Returns KL(data || model) of whole answers in nats, the mean over demonstrations of the chain.

    ``sum_t KL(P(. | s_t) || q(. | y_<t)) - log q(end | y)``, ``s_t`` the word before: exact at each word, along sampled
    answers; that the answer ends after its eighth word is certain.
    """
    words = tiny.tokenizer()
    conversations = [words.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows]
    tokens = torch.tensor([words(text, add_special_tokens=False).input_ids for text in conversations])
    ids = torch.tensor(words.convert_tokens_to_ids(list(WORDS)))
    total = 0.0
    for part in tokens.split(128):
        with torch.no_grad():
            logits = model(part[:, :-1], use_cache=False).logits[:, -LENGTH - 1 :]
        logq = logits.double().log_softmax(-1)
        # The word before the first of the answer stands before the turn's own token.
        before = torch.cat([part[:, -LENGTH - 3, None], part[:, -LENGTH - 1 : -2]], 1)
        chain = world.transitions[before - ids[0]]
        total += float((chain * (chain.log() - logq[:, :-1, ids])).sum())
        total -= float(logq[:, -1, words.eos_token_id].sum())
    return total / len(rows)


def start(rows: Sequence[Row], seed: int, work: Path, quick: bool) -> Any:
    """Returns a model after a few supervised steps at a constant rate, too few to learn the language whole."""
    model, steps = tiny.untrained(seed), 5 if quick else START_STEPS
    settings = {"learning_rate": START_RATE, "per_device_train_batch_size": START_BATCH}
    tiny.fit(model, rows[: steps * START_BATCH], SFT, seed, work, steps, lr_scheduler_type="constant", **settings)
    return model


def against_itself(model: Any, rows: Sequence[Row], seed: int) -> list[Row]:
    """Returns pairs of each demonstration and the model's own answer; unfinished and equal ones are left out."""
    words = tiny.tokenizer()
    answers = generate(model, words, [row["prompt"] for row in rows], sample=True, max_new_tokens=LENGTH + 4, seed=seed)
    pairs = []
    for row, answer, text in zip(rows, answers, texts(words, answers), strict=True):
        own = [{"role": "assistant", "content": text}]
        if answer.completion[-1] == words.eos_token_id and text and own != row["completion"]:
            pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": own})
    return pairs


def train(method: str, seed: int, work: Path, quick: bool) -> list[Row]:
    """Trains so many rounds, each on the next demonstrations; returns KL(data || policy) at the start and after each.

    A fresh optimiser each round, for the control too. Where equal answers left pairs out, rows come again.
    """
    world, (rounds, steps) = World(seed), (2, 2) if quick else (ROUNDS, STEPS)
    size, beta = steps * BATCH, METHODS[method]
    rows, tests = world.demonstrations(rounds * size), world.demonstrations(64 if quick else tiny.PROMPTS, "test data")
    model = start(rows, seed, work, quick)
    found = [{"round": 0, "data_kl": data_kl(model, world, tests), "pairs": 0}]
    for number in range(1, rounds + 1):
        own = rows[(number - 1) * size : number * size]
        loss = SFT
        if beta:
            own, loss = against_itself(model, own, 1000 * seed + number), {"name": "spin", "beta": beta}
        tiny.fit(model, own, loss, seed, work, steps, learning_rate=RATE, per_device_train_batch_size=BATCH)
        found.append({"round": number, "data_kl": data_kl(model, world, tests), "pairs": len(own) if beta else 0})
    return found


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    runs = results.Runs(chosen.output / "repro_spin.csv", ("method", "seed"))
    for seed in range(chosen.seeds):
        for method in METHODS:
            make = partial(train, method, seed, chosen.output / "work", chosen.quick)
            runs.run(make, method=method, seed=seed)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims."""
    claims = results.Claims()
    last = max(row["round"] for row in runs.rows)
    ways = {method: [runs.pick(method=method, round=number) for number in range(last + 1)] for method in METHODS}
    kls = {method: [[row["data_kl"] for row in rows] for rows in way] for method, way in ways.items()}
    best, free = "SPIN, beta 5", "SPIN, beta 0.1"
    for method in (best, free):
        for number in range(1, last + 1):
            before, after = kls[method][number - 1 : number + 1]
            claims.add(f"KL(data || policy) of {method} falls in round {number}", _less(before, after))
    claims.add(f"KL(data || policy) of {free} at the end less that of the start", _less(kls[free][last], kls[free][0]))
    falls = [1 - after / before for before, after in zip(kls[best][0], kls[best][last], strict=True)]
    claims.note(f"share of the KL that {best} takes away", falls)
    claims.add(f"that share less {FALL:g}", [fall - FALL for fall in falls])
    claims.add(
        f"KL of SFT on the same answers below that of {best} at the end", _less(kls[best][last], kls["SFT"][last])
    )
    for method in METHODS:
        peaks = [max(values) for values in zip(*kls[method], strict=True)]
        claims.note(f"KL(data || policy) of {method} at the end", kls[method][last])
        claims.note(f"highest KL(data || policy) of {method}", peaks)
    claims.note("KL(data || policy) of the start", kls["SFT"][0])
    claims.write(chosen.output / "repro_spin_claims.csv")


def _less(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ones, others, strict=True)]


if __name__ == "__main__":
    main()
