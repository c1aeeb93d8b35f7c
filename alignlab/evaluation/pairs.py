"""Held-out pairs, scored row by row under policy and reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate.utils import send_to_device
from torch import nn

from alignlab import scoring
from alignlab.data import Mode, layout_fields, sequence
from alignlab.runtime import bar, evaluating, over, shown_as

from .shares import joined, share


@dataclass
class PairRow:
    """One held-out pair: log-probabilities in nats over the tokens that count, and how many those are."""

    row: int
    source: str
    group: str | None
    chosen_logp: float
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int
    ref_chosen_logp: float | None = None
    ref_rejected_logp: float | None = None


def score_pairs(
    policy: nn.Module,
    dataset: Any,
    pad_id: int,
    reference: nn.Module | None = None,
    *,
    batch_size: int = 8,
    mode: Mode = "padded",
    progress: bool = False,
) -> list[PairRow]:
    """Returns every pair of a tokenised dataset, scored under policy and reference, on every rank.

    ``mode`` is a layout that both models take: ``scoring.choose_layout`` finds the best.
    """
    mine, rows = share(len(dataset)), dataset.with_format("numpy")
    models = [policy] if reference is None else [policy, reference]
    heads = [scoring.head_of(one) for one in models]
    device, found = next(policy.parameters()).device, list[PairRow]()
    starts = range(0, len(mine), batch_size)
    for start in over(starts, bar("pairs", len(starts), "batches", shown_as() if progress else "none")):
        indices = mine[start : start + batch_size]
        batch = [rows[index] for index in indices]
        fields = {name: [sequence(row, name) for row in batch] for name in ("chosen", "rejected")}
        layout = send_to_device(layout_fields(fields, pad_id, mode), device)
        sums = []
        for model, head in zip(models, heads, strict=True):
            with evaluating(model):
                sums.append(scoring.score(model, layout, head=head)["logps"].double().sum(-1).tolist())
        tokens = layout["mask"].sum(-1).tolist()
        for n, index in enumerate(indices):
            group = str(batch[n]["group"]) if "group" in batch[n] else None
            chosen, rejected, *ref = (completion[n] for one in sums for completion in one)
            counts = tokens[0][n], tokens[1][n]
            found.append(PairRow(index, str(batch[n]["source"]), group, chosen, rejected, *counts, *ref))
    return joined(found, lambda row: row.row)
