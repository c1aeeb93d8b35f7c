"""Random batches that hold what a loss needs and nothing else, and ways to change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ._base import Batch, Facts, Labelled, Needs, Pairs, Scored

ROWS, TOKENS, GROUPS = 8, 6, ("small", "middle", "large")


def example_facts(needs: Needs) -> Facts:
    """Returns facts of a data set that ``example_batch`` could be drawn from."""
    rows = {"small": 20, "middle": 30, "large": 50} if "group" in needs.columns else {}
    objectives = tuple(f"objective_{j}" for j in range(needs.rewards))
    return Facts(rows=100, groups=rows, desirable=50, undesirable=50, objectives=objectives)


def example_batch(needs: Needs, rows: int = ROWS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Returns random completions of 1 to 6 tokens with all that ``needs`` asks for, and nothing else."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    def scored() -> Scored:
        lengths = torch.randint(1, TOKENS + 1, (rows, 1), generator=draw)
        logps = -normal(rows, TOKENS).abs() - 0.1
        return Scored(
            logps=logps.requires_grad_(),
            mask=torch.arange(TOKENS) < lengths,
            ref_logps=(logps.detach() + 0.5 * normal(rows, TOKENS)).clamp(max=-0.01) if needs.ref_logps else None,
            kl=normal(rows, TOKENS).abs().requires_grad_() if needs.kl else None,
            prompt_logps=(-normal(rows, 3).abs() - 0.1).requires_grad_() if needs.prompt_logps else None,
            prompt_mask=torch.ones(rows, 3, dtype=torch.bool) if needs.prompt_logps else None,
            second_moment=-normal(rows, TOKENS).abs() if needs.second_moment else None,
            rewards=normal(rows, needs.rewards) if needs.rewards else None,
            scorers={name: -normal(rows, TOKENS).abs() for name in needs.scorers},
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
        return Pairs(scored(), scored(), gold=scored() if needs.gold else None, **columns)
    mismatched = _detached(scored()) if needs.mismatched else None
    return Labelled(scored(), torch.arange(rows) % 3 > 0, mismatched, **columns)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Returns the rows with these indices, as new leaves that take a gradient where the old ones did."""
    return mapped(batch, lambda values: values[rows])


def completions(batch: Batch) -> Iterator[Scored]:
    """Yields the scored completions that a gradient flows into."""
    yield from (batch.chosen, batch.rejected) if isinstance(batch, Pairs) else (batch.completions,)
    if isinstance(batch, Pairs) and batch.gold is not None:
        yield batch.gold


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Returns the batch with ``change`` applied to every tensor that has a row per completion."""

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
    pad = torch.zeros(len(scored.mask), 2)
    mask = torch.cat([scored.mask, pad.bool()], dim=1)
    for name in ("logps", "ref_logps", "kl", "second_moment"):
        value = getattr(scored, name)
        if value is not None:
            polluted = torch.cat([value.detach(), pad.to(value)], dim=1).masked_fill(~mask, garbage)
            setattr(scored, name, polluted.requires_grad_(value.requires_grad))
    scored.scorers = {
        name: torch.cat([value, pad.to(value)], 1).masked_fill(~mask, garbage) for name, value in scored.scorers.items()
    }
    scored.mask = mask
