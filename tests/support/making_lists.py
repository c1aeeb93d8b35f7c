"""Lists of completions: rows of them, and scored ones that have the log-ratios or likelihoods that a test asks for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from making import sentence
from torch import Tensor

from alignlab.losses import Listed, Pairs, Scored

Scores = Sequence[Sequence[float]]


def make_lists(
    count: int, seed: int = 0, sizes: Sequence[int] = (4, 2, 3), groups: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Returns rows of scored answers, of these numbers by turns; the second and the third best of four are tied."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        answers = [f" {sentence(rng, rng.randint(1, 7))} {index} {n}" for n in range(sizes[index % len(sizes)])]
        scores = [0.1 * (n if n != 2 else 1) for n in range(len(answers))]
        rng.shuffle(scores)
        row = {"prompt": sentence(rng, rng.randint(2, 6)) + " :", "completions": answers, "scores": scores}
        if groups:
            row["group"] = groups[index % len(groups)]
        rows.append(row)
    return rows


def lists_of_ratios(log_ratios: Tensor, scores: Scores, tokens: Sequence[int] | None = None) -> Listed:
    """Returns lists whose completions have these log-ratios ``[N, K]``, all of it in the first token.

    Args:
        scores: one number a completion, higher is better; NaN makes a hole.
        tokens: how many tokens the completions of each place have, 2 where it is not given; the reference gives each
            token the log-probability -1.
    """
    lists = lists_of_means(torch.full_like(log_ratios, -1.0), scores, tokens)
    scored = lists.completions
    scored.ref_logps, scored.logps = scored.logps.detach(), scored.logps.detach().clone()
    scored.logps[..., 0] += log_ratios.detach()
    scored.logps.requires_grad_()
    return lists


def lists_of_means(means: Tensor, scores: Scores, tokens: Sequence[int] | None = None) -> Listed:
    """Returns lists each of whose tokens has its completion's mean log-probability ``[N, K]``; no reference."""
    lengths = torch.tensor(tokens or [2] * means.shape[1])
    values = torch.tensor(scores, dtype=means.dtype)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]) & ~values.isnan()[..., None]
    logps = means.detach()[..., None].expand(mask.shape).clone().requires_grad_()
    return Listed(Scored(logps, mask), values)


def pair_of(lists: Listed, chosen: int, rejected: int) -> Pairs:
    """Returns the completions at two places of every list as pairs, with their scores."""

    def side(place: int) -> Scored:
        scored = lists.completions
        reference = None if scored.ref_logps is None else scored.ref_logps[:, place]
        return replace(scored, logps=scored.logps[:, place], mask=scored.mask[:, place], ref_logps=reference)

    upper, lower = lists.scores[:, chosen], lists.scores[:, rejected]
    return Pairs(side(chosen), side(rejected), margin=upper - lower, score_chosen=upper, score_rejected=lower)


def gradient(loss: Tensor, lists: Listed) -> Tensor:
    """Returns the gradient of the summed loss on the first token of each completion, ``[N, K]``."""
    (slopes,) = torch.autograd.grad(loss.sum(), [lists.completions.logps], retain_graph=True)
    return slopes[..., 0]
