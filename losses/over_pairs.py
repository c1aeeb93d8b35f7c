"""Any loss of pairs, over all pairs of a list."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ._base import Batch, Facts, Listed, Loss, LossOutput, Needs, Pairs, Totals, bind, lists_of
from ._rows import row_weights
from ._scored import Scored, where_mask
from .dpo import DPO

OF_SCORES = ("margin", "score_chosen", "score_rejected")


class OverPairs(Loss):
    """Any loss of pairs, over the pairs of a list whose scores differ.

    Formula: ``mean of base(i, j) over the pairs with score_i > score_j`` of a list, or their sum.

    The mean is the default: by their sums, a list of 7, which has 21 pairs, would drown a list of 2. Tied completions
    are not compared. What the base reads of a pair's scores (``margin``, ``score_chosen``, ``score_rejected``) are the
    list's scores and their difference. A completion's reward is the mean of those that the base reports of it.

    Args:
        base: the loss of pairs, DPO where none is given.
        reduction: "mean" or "sum" over the pairs of a list.

    Raises:
        ValueError: the base does not compare the two completions of each row by itself.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1 (mean over the K (K - 1) / 2 pairs of a prompt, there of reward
        models); Liu et al. 2024 (LiPO), arXiv:2402.01878, eq. 5 (sum).
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    def __init__(self, base: Loss | None = None, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.base = DPO() if base is None else base
        self.reduction = reduction
        self.needs = _needs(self.base)
        self.stops_gradient = self.base.stops_gradient

    def bind(self, facts: Facts) -> None:
        scores = {
            name: facts.ranges["scores"] for name in ("score_chosen", "score_rejected") if "scores" in facts.ranges
        }
        bind("base", self.base, replace(facts, ranges={**facts.ranges, **scores}))

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        winner, loser, count = _pair_places(lists)
        shape = winner.shape
        out: LossOutput = self.base(_pairs(lists, winner, loser, count), None)
        loss = where_mask(out.loss.reshape(shape), count).sum(-1)
        if self.reduction == "mean":
            loss = loss / count.sum(-1).clamp(min=1)
        rewards = None
        if out.chosen_rewards is not None and out.rejected_rewards is not None:
            values = torch.cat([out.chosen_rewards.reshape(shape), out.rejected_rewards.reshape(shape)], 1)
            places, seen = torch.cat([winner, loser], 1), torch.cat([count, count], 1)
            rewards = _means(where_mask(values, seen), seen, places, lists.scores.shape[1])
        return LossOutput(loss, rewards=rewards, metrics=out.metrics)


def _needs(base: Loss) -> Needs:
    """Returns what the base needs, of lists; raises ValueError where it is no loss of single pairs."""
    needs, name = base.needs, type(base).__name__
    if needs.data != "pairs":
        raise ValueError(f"base: {name} reads {needs.data}, and not the pairs that a list has")
    if needs.coupled != "none":
        over = "optimiser step" if needs.coupled == "step" else "micro-batch"
        raise ValueError(
            f"base: {name} couples the pairs of a whole {over}, and a list's pairs are no rows; where a likelihood over"
            " all tokens couples it, write nll_reduction: example"
        )
    beside = {"a gold completion": needs.gold, "an answer drawn in the step": needs.online}
    for what in (what for what, needed in beside.items() if needed):
        raise ValueError(f"base: {name} reads {what} beside each pair, which a list has not")
    if not needs.rejected:
        raise ValueError(f"base: {name} reads the chosen completion alone, so it does not compare the pairs of a list")
    return replace(needs, data="lists", columns=tuple(name for name in needs.columns if name not in OF_SCORES))


def _pair_places(lists: Listed) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the places of winner and loser, and whether the pair counts, each ``[N, K (K - 1) / 2]``.

    A pair that does not count, tied or with a hole, stands as best against worst, so that whatever the base makes of
    it is finite; no device is asked which pairs there are.
    """
    scores, there = lists.scores.detach(), lists.present
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    upper, lower = scores[:, first], scores[:, second]
    count = there[:, first] & there[:, second] & (upper != lower)
    best = scores.masked_fill(~there, -torch.inf).argmax(-1, keepdim=True)
    worst = scores.masked_fill(~there, torch.inf).argmin(-1, keepdim=True)
    wins = upper > lower
    return (
        torch.where(count, torch.where(wins, first, second), best),
        torch.where(count, torch.where(wins, second, first), worst),
        count,
    )


def _pairs(lists: Listed, winner: Tensor, loser: Tensor, count: Tensor) -> Pairs:
    """Returns the pairs at these places, list after list; those that do not count have the weight 0."""
    rows = torch.arange(len(lists), device=winner.device)[:, None].expand_as(winner)
    scores = lists.scores.detach()
    chosen, rejected = scores.gather(1, winner).flatten(), scores.gather(1, loser).flatten()
    return Pairs(
        _taken(lists.completions, rows, winner),
        _taken(lists.completions, rows, loser),
        group=None if lists.group is None else lists.group[rows].flatten(),
        weight=(row_weights(lists, scores)[:, None] * count).flatten(),
        margin=chosen - rejected,
        score_chosen=chosen,
        score_rejected=rejected,
    )


def _taken(scored: Scored, rows: Tensor, places: Tensor) -> Scored:
    """Returns the completions at these rows and places, in one row; a prompt's tokens stand at the row."""

    def take(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return (value[rows] if name.startswith("prompt_") else value[rows, places]).flatten(0, 1)
        return {key: take(name, one) for key, one in value.items()} if name == "scorers" else value

    return Scored(**{entry.name: take(entry.name, getattr(scored, entry.name)) for entry in fields(Scored)})


def _means(values: Tensor, seen: Tensor, places: Tensor, width: int) -> Tensor:
    """Returns ``[N, width]``: the mean of the values that stand at each place, over those that are seen."""
    sums = values.new_zeros(len(values), width).scatter_add(1, places, values)
    counts = torch.zeros_like(sums).scatter_add(1, places, seen.to(values))
    return sums / counts.clamp(min=1)
