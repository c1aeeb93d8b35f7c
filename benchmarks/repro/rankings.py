"""Rankings of four answers, learned as lists, against the best and the worst of them as one pair.

    python benchmarks/repro/rankings.py [--quick] [--seeds 5] [--output runs/repro]

Liu et al. 2024 (LiPO, arXiv:2402.01878) claim that a list says more than pairs of it, and LiPO-lambda learns it best;
Rafailov et al. 2023 (arXiv:2305.18290, appendix A.3) rank by Plackett and Luce; Chen et al. 2024 (S-DPO,
arXiv:2406.09215) set the best against all others at once. A list of four orders six pairs, so there are two ways to
be fair to DPO: the same prompts, of which it reads one pair each, and as many comparisons, six times the prompts. All
rows are equally long and few, so the losses are called on plain tensors: the loop is here, and no trainer.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import results
import tiny
import torch
from frontier import beside_best, start, values_at
from torch import Tensor
from world import Row, World

from alignlab import losses
from alignlab.losses import Listed, Loss, Pairs, Scored

LISTS, STEPS, POINTS, SIZE = 512, 32, (5, 12, 32), 4
BETAS = (0.1,)
BATCH, TIMES = 16, SIZE * (SIZE - 1) // 2  # lists a step, pairs of a list
METHODS: dict[str, tuple[dict[str, Any], int, int]] = {  # the loss, how many answers it ranks, times the prompts
    "best-worst": ({"name": "dpo"}, SIZE, 1),
    "best-worst x6": ({"name": "dpo"}, SIZE, TIMES),
    "fresh pairs x6": ({"name": "dpo"}, 2, TIMES),
    "all pairs": ({"name": "over_pairs"}, SIZE, 1),
    "Plackett-Luce": ({"name": "plackett_luce"}, SIZE, 1),
    "LiPO": ({"name": "lipo_lambda", "labels": "ranks"}, SIZE, 1),
    "S-DPO": ({"name": "softmax_dpo"}, SIZE, 1),
}
PAIRED = ("best-worst", "best-worst x6", "fresh pairs x6")
LEVELS = (1.0, 2.0)  # nats of KL at which frontiers are compared


def loss_of(method: str, beta: float) -> Loss:
    """Returns the loss; that of all pairs has its beta in the base."""
    loss = METHODS[method][0]
    return losses.build(
        {**loss, "base": {"name": "dpo", "beta": beta}} if method == "all pairs" else loss | {"beta": beta}
    )


# ---- the loop ----------------------------------------------------------------------------------------------------


@cache
def ranked(seed: int, count: int, size: int) -> tuple[Tensor, Tensor, int]:
    """Returns tokens ``[N, K, T]`` of prompts and answers, scores ``[N, K]`` and where answers begin.

    The answers of a loss of pairs are the best and the worst of a list; two answers are both.
    """
    words, rows = tiny.tokenizer(), World(seed).lists(count, size)
    texts = [
        words.apply_chat_template(row["prompt"] + one, tokenize=False) for row in rows for one in row["completions"]
    ]
    prompt = words.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([words(text, add_special_tokens=False).input_ids for text in texts])
    start = len(words(prompt, add_special_tokens=False).input_ids)
    return tokens.unflatten(0, (count, size)), torch.tensor([row["scores"] for row in rows]), start


def logps(model: Any, tokens: Tensor, start: int) -> Tensor:
    """Returns log-probabilities of the answers' tokens, ``[N, K, T - start]``."""
    flat = tokens.flatten(0, 1)
    logits = model(flat, use_cache=False).logits[:, start - 1 : -1].float().log_softmax(-1)
    return logits.gather(-1, flat[:, start:, None])[..., 0].unflatten(0, tokens.shape[:2])


def batch_of(policy: Tensor, reference: Tensor, scores: Tensor, *, pairs: bool) -> Pairs | Listed:
    """Returns lists, or their first two answers as pairs."""

    def scored(values: Tensor, frozen: Tensor) -> Scored:
        return Scored(values, torch.ones_like(values, dtype=torch.bool), frozen)

    if not pairs:
        return Listed(scored(policy, reference), scores)
    return Pairs(*(scored(policy[:, place], reference[:, place]) for place in (0, 1)))


def best_and_worst(tokens: Tensor, scores: Tensor) -> Tensor:
    """Returns ``[N, 2, T]`` of ``tokens [N, K, T]``: those of the answers with the highest and the lowest score.

    >>> best_and_worst(torch.tensor([[[5], [6], [7]]]), torch.tensor([[0.0, -1.0, 2.0]])).tolist()
    [[[7], [6]]]
    """
    ends = torch.stack([scores.argmax(-1), scores.argmin(-1)], -1)
    return tokens.gather(1, ends[..., None].expand(-1, -1, tokens.shape[-1]))


def fit(
    base: Any, method: str, beta: float, seed: int, lists: int, steps: int, watch: Callable[[int, Any], None]
) -> None:
    """Trains a copy of ``base`` as the trainer would: AdamW at 1e-3, warm-up and cosine, gradients clipped to 1."""
    _, size, times = METHODS[method]
    pairs, loss, model = method in PAIRED, loss_of(method, beta), copy.deepcopy(base)
    tokens, scores, start = ranked(seed, lists * times, size)
    tokens = best_and_worst(tokens, scores) if pairs else tokens
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    warm = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * max(0, step - warm) / (steps - warm))) / 2,
    )
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).split(BATCH * times)
    for step, rows in enumerate(order[:steps]):
        with torch.no_grad():
            reference = logps(base, tokens[rows], start)
        out = loss(batch_of(logps(model, tokens[rows], start), reference, scores[rows], pairs=pairs))
        optimiser.zero_grad()
        out.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        watch(step + 1, model)


def train(method: str, beta: float, seed: int, work: Path, quick: bool) -> list[Row]:
    """Trains one loss; returns reward, KL, entropy and diversity at each point of its way."""
    world, base = World(seed), tiny.start(seed, work, quick=quick)
    lists, steps, points = (32, 2, (2,)) if quick else (LISTS, STEPS, POINTS)
    prompts = world.prompts(tiny.PROMPTS if not quick else 32, "test")
    rows: list[Row] = []

    def watch(step: int, model: Any) -> None:
        if step in points:
            rows.append({"step": step, **beside_best(model, base, world, prompts)})

    fit(base, method, beta, seed, lists, steps, watch)
    return rows


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    work = chosen.output / "work"
    runs = results.Runs(chosen.output / "repro_rankings.csv", ("method", "beta", "seed"))
    for seed in range(chosen.seeds):
        runs.run(lambda seed=seed: start(seed, work, chosen.quick), method="start", beta=0.0, seed=seed)
        for method, beta in product(METHODS, BETAS):
            key = {"method": method, "beta": beta, "seed": seed}
            runs.run(lambda key=key: train(**key, work=work, quick=chosen.quick), **key)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figure; a seed counts where the frontiers of both losses reach the KL."""
    claims = results.Claims()
    for kl, method, other in product(LEVELS, METHODS, PAIRED):
        if method != other and (method not in PAIRED or other == PAIRED[0]):
            both = zip(values_at(runs, method, kl, "reward_0"), values_at(runs, other, kl, "reward_0"), strict=True)
            if differences := [a - b for a, b in both if a is not None and b is not None]:
                claims.add(f"reward of {method} less that of {other} at {kl:g} nats", differences)
    for kl, method in product(LEVELS, METHODS):
        both = zip(values_at(runs, method, kl, "reward_0"), values_at(runs, method, kl, "best_reward"), strict=True)
        if shares := [a / b for a, b in both if a is not None and b is not None]:
            claims.note(f"share of the best possible reward at {kl:g} nats: {method}", shares)
    last = max(row["step"] for row in runs.rows)
    for method, beta in product(METHODS, BETAS):
        for column in ("reward_0", "kl", "formed"):
            ends = [row[column] for row in runs.pick(method=method, step=last, beta=beta)]
            claims.note(f"{column} of {method} at the end, beta {beta:g}", ends)
    claims.write(chosen.output / "repro_rankings_claims.csv")
    draw(runs, chosen.output)


def draw(runs: results.Runs, folder: Path) -> None:
    """Draws the share of the best possible reward over KL, medians over seeds along the way, at both kinds of equal."""
    figure, panels = results.panels(2)
    lists = [method for method in METHODS if method not in PAIRED]
    sides = ((PAIRED[:1], "equal prompts"), (PAIRED[1:], "equal comparisons"))
    for axis, (others, title) in zip(panels, sides, strict=True):
        for method in (*others, *lists):
            steps = [runs.pick(method=method, step=step) for step in sorted({row["step"] for row in runs.rows} - {0})]
            kls = [statistics.median(row["kl"] for row in rows) for rows in steps]
            shares = [statistics.median(row["reward_0"] / row["best_reward"] for row in rows) for rows in steps]
            axis.plot(kls, shares, marker=".", linestyle="--" if method in PAIRED else "-", label=method)
        axis.set(xlabel="KL, nats", ylabel="share of the best possible reward", title=title)
        axis.legend(fontsize=7)
    results.save(figure, folder / "repro_rankings.png")


if __name__ == "__main__":
    main()
