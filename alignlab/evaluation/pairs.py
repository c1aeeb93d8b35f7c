"""Held-out pairs, scored row by row under policy and reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import send_to_device
from torch import nn

from alignlab import scoring
from alignlab.data import Mode, layout_fields, sequences_of
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
    policy: nn.Module, dataset: Any, pad_id: int, reference: nn.Module | None = None, **options: Any
) -> list[PairRow]:
    """Returns every pair of a tokenised dataset, scored under policy and reference, on every rank.

    Args:
        options: ``batch_size``, ``mode`` (a layout that both models take: ``scoring.choose_layout`` finds the best) and
            ``progress``.
    """
    found = []
    for index, row, sums, tokens in scored_rows(policy, dataset, pad_id, reference, ("chosen", "rejected"), **options):
        group = str(row["group"]) if "group" in row else None
        chosen, rejected, *ref = (completion for one in sums for completion in one)
        found.append(PairRow(index, str(row["source"]), group, chosen, rejected, tokens[0], tokens[1], *ref))
    return joined(found, lambda row: row.row)


def scored_rows(
    policy: nn.Module,
    dataset: Any,
    pad_id: int,
    reference: nn.Module | None,
    fields: Sequence[str],
    *,
    batch_size: int = 8,
    mode: Mode = "padded",
    progress: bool = False,
) -> Iterator[tuple[int, dict[str, Any], list[list[float]], list[int]]]:
    """Yields this rank's rows: number, row, log p of each completion by model (policy, reference), and their tokens."""
    mine, rows = share(len(dataset)), dataset.with_format("numpy")
    models = [policy] if reference is None else [policy, reference]
    heads = [scoring.head_of(one) for one in models]
    device = next(policy.parameters()).device
    starts = range(0, len(mine), batch_size)
    for start in over(starts, bar("rows", len(starts), "batches", shown_as() if progress else "none")):
        indices = mine[start : start + batch_size]
        batch = [rows[index] for index in indices]
        layout = send_to_device(layout_fields(sequences_of(batch, fields), pad_id, mode), device)
        sums = []
        for model, head in zip(models, heads, strict=True):
            with evaluating(model):
                sums.append(scoring.score(model, layout, head=head)["logps"].double().sum(-1).T.tolist())
        tokens = layout["mask"].sum(-1).T.tolist()
        for n, index in enumerate(indices):
            yield index, batch[n], [one[n] for one in sums], tokens[n]
