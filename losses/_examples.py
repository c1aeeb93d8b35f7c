"""Random batches that hold what a loss needs and nothing else, and ways to change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ._base import Batch, Facts, Labelled, Listed, Needs, Pairs
from ._scored import Scored

ROWS, LIST, TOKENS, GROUPS = 8, 4, 6, ("small", "middle", "large")

HOLE = -1  # where ``rearranged`` puts a completion that is not there


def example_facts(needs: Needs) -> Facts:
    """Returns facts of a data set that ``example_batch`` could be drawn from."""
    rows = {"small": 20, "middle": 30, "large": 50} if "group" in needs.columns else {}
    objectives = tuple(f"objective_{j}" for j in range(needs.rewards))
    return Facts(rows=100, groups=rows, desirable=50, undesirable=50, objectives=objectives)


def example_batch(needs: Needs, rows: int = ROWS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Returns random completions of 1 to 6 tokens with all that ``needs`` asks for, and nothing else.

    Lists have 2 to 4 completions, holes in between, and every third one has a tie.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (rows, LIST) if needs.data == "lists" else (rows,)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    def scored() -> Scored:
        lengths = torch.randint(1, TOKENS + 1, (*shape, 1), generator=draw)
        logps = -normal(*shape, TOKENS).abs() - 0.1
        return Scored(
            logps=logps.requires_grad_() if needs.logps else torch.full_like(logps, torch.nan),
            mask=torch.arange(TOKENS) < lengths,
            ref_logps=(logps.detach() + 0.5 * normal(*shape, TOKENS)).clamp(max=-0.01) if needs.ref_logps else None,
            kl=normal(*shape, TOKENS).abs().requires_grad_() if needs.kl else None,
            prompt_logps=(-normal(rows, 3).abs() - 0.1).requires_grad_() if needs.prompt_logps else None,
            prompt_mask=torch.ones(rows, 3, dtype=torch.bool) if needs.prompt_logps else None,
            second_moment=-normal(*shape, TOKENS).abs() if needs.second_moment else None,
            rewards=normal(*shape, needs.rewards) if needs.rewards else None,
            values=normal(*shape, needs.values).requires_grad_() if needs.values else None,
            scorers={name: -normal(*shape, TOKENS).abs() for name in needs.scorers},
        )

    low = normal(rows).abs() % 0.5
    known = {
        "group": torch.arange(rows) % len(GROUPS),
        "margin": normal(rows).abs(),
        "score_rejected": low,
        "score_chosen": low + 0.1 + normal(rows).abs() % 0.3,
    }
    columns = {name: known[name] for name in needs.columns if name in known}
    if needs.data == "pairs":
        return Pairs(
            scored(),
            scored(),
            gold=scored() if needs.gold else None,
            online=scored() if needs.online else None,
            **columns,
        )
    if needs.data == "lists":
        return _listed(scored(), normal(*shape), columns)
    mismatched = _detached(scored()) if needs.mismatched else None
    return Labelled(scored(), torch.arange(rows) % 3 > 0, mismatched, **columns)


def _listed(scored: Scored, values: Tensor, columns: dict[str, Tensor]) -> Listed:
    """Returns lists of 4, 3 and 2 completions in turn, those of 3 with a tie; scores lie in (0, 1)."""
    row, place = torch.arange(len(values))[:, None], torch.arange(LIST)
    scored.mask &= ((place + row) % LIST >= row % 3)[..., None]
    scores = values.sigmoid()
    tied = (place == (2 - row) % LIST) & (row % 3 == 1)
    scores = torch.where(tied, scores.gather(1, (1 - row) % LIST), scores)
    return Listed(scored, scores, **columns)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Returns the rows with these indices, as new leaves that take a gradient where the old ones did."""
    return mapped(batch, lambda values: values[rows])


def completions(batch: Batch) -> Iterator[Scored]:
    """Yields the scored completions that a gradient flows into."""
    yield from (batch.chosen, batch.rejected) if isinstance(batch, Pairs) else (batch.completions,)
    if isinstance(batch, Pairs) and batch.gold is not None:
        yield batch.gold
    if isinstance(batch, Pairs) and batch.online is not None:
        yield batch.online


def fill(batch: Batch, policy: float, reference: float) -> None:
    """Writes log-probabilities: one completion likely where the other is not, and a third between them."""
    sides = ((policy, reference), (reference, policy), (-1.0, -1.0))
    for index, scored in enumerate(completions(batch)):
        places = range(LIST) if isinstance(batch, Listed) else [index]
        for place in places:
            at = (slice(None), place) if isinstance(batch, Listed) else ()
            with torch.no_grad():
                scored.leading[at] = sides[place % 3][0]
                if scored.ref_logps is not None:
                    scored.ref_logps[at] = sides[place % 3][1]


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Returns the batch with ``change`` applied to every tensor of it."""

    def apply(value: object) -> object:
        if isinstance(value, Scored):
            parts: dict[str, Any] = {entry.name: apply(getattr(value, entry.name)) for entry in fields(value)}
            return Scored(**parts)
        if isinstance(value, dict):
            return {name: apply(item) for name, item in value.items()}
        if not isinstance(value, Tensor):
            return value
        changed = change(value.detach())
        return changed.requires_grad_() if value.requires_grad else changed

    changes: dict[str, Any] = {entry.name: apply(getattr(batch, entry.name)) for entry in fields(batch)}
    return replace(batch, **changes)


def _detached(scored: Scored) -> Scored:
    return replace(scored, logps=scored.logps.detach())


def pollute(scored: Scored, garbage: float) -> None:
    """Appends two masked positions, and writes ``garbage`` wherever the mask is False."""
    pad = torch.zeros(*scored.mask.shape[:-1], 2)
    mask = torch.cat([scored.mask, pad.bool()], dim=-1)
    for name in ("logps", "ref_logps", "kl", "second_moment"):
        value = getattr(scored, name)
        if value is not None:
            polluted = torch.cat([value.detach(), pad.to(value)], dim=-1).masked_fill(~mask, garbage)
            setattr(scored, name, polluted.requires_grad_(value.requires_grad))
    scored.scorers = {
        name: torch.cat([value, pad.to(value)], dim=-1).masked_fill(~mask, garbage)
        for name, value in scored.scorers.items()
    }
    scored.mask = mask


def rearranged(batch: Listed, order: list[int]) -> Listed:
    """Returns lists with their completions in ``order``, and NaN, not counted, at each ``HOLE``; new leaves."""
    places = torch.tensor(order)

    def change(values: Tensor) -> Tensor:
        if values.shape[:2] != batch.scores.shape:
            return values.clone()
        taken = values[:, places.clamp(min=0)]
        hole = (places == HOLE).reshape(-1, *[1] * (values.dim() - 2))
        return taken.masked_fill(hole, False if values.dtype == torch.bool else float("nan"))

    changed = mapped(batch, change)
    assert isinstance(changed, Listed)
    return changed
