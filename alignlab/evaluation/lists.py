"""Held-out lists, scored completion by completion under policy and reference, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from alignlab.data import LIST
from alignlab.metrics import Figures, formulas

from .pairs import PairRow, scored_rows
from .shares import joined


@dataclass
class ListRow:
    """One held-out list: scores of the data, log-probabilities in nats over the tokens that count, and how many."""

    row: int
    source: str
    group: str | None
    scores: list[float]
    logps: list[float]
    tokens: list[int]
    ref_logps: list[float] | None = None

    def ends(self) -> PairRow:
        """Returns the best and the worst completion as a pair; of equally good ones the first."""
        best, worst = (self.scores.index(end) for end in (max(self.scores), min(self.scores)))
        ref = [] if self.ref_logps is None else [self.ref_logps[best], self.ref_logps[worst]]
        logps, counts = (self.logps[best], self.logps[worst]), (self.tokens[best], self.tokens[worst])
        return PairRow(self.row, self.source, self.group, *logps, *counts, *ref)

    def rewards(self, beta: float) -> list[float]:
        """Returns beta (log p - log q) of each completion, or beta log p where no reference was scored."""
        ref = self.ref_logps or [0.0] * len(self.logps)
        return [beta * (one - other) for one, other in zip(self.logps, ref, strict=True)]


def score_lists(
    policy: nn.Module, dataset: Any, pad_id: int, reference: nn.Module | None = None, **options: Any
) -> list[ListRow]:
    """Returns every list of a tokenised dataset, scored under policy and reference, on every rank.

    Args:
        options: ``batch_size``, ``mode`` and ``progress``, as of ``score_pairs``.
    """
    known = dataset.select_columns(["scores"]).with_format(None)  # numpy's floats have half the digits
    found = []
    for index, row, sums, tokens in scored_rows(policy, dataset, pad_id, reference, (LIST,), **options):
        size = len(row["scores"])  # behind it are the holes of a batch
        logps, *ref = (one[:size] for one in sums)
        group = str(row["group"]) if "group" in row else None
        found.append(ListRow(index, str(row["source"]), group, known[index]["scores"], logps, tokens[:size], *ref))
    return joined(found, lambda row: row.row)


def list_figures(rows: Sequence[ListRow], beta: float) -> Figures:
    """Returns how well rewards order held-out lists ("ranking"), and how well log p does, summed and per token."""
    scores, logps = [row.scores for row in rows], [row.logps for row in rows]
    per_token = [np.divide(row.logps, np.maximum(row.tokens, 1)) for row in rows]
    return {
        "ranking": formulas.list_ranking([row.rewards(beta) for row in rows], scores),
        "likelihood_ranking": formulas.list_ranking(logps, scores),
        "per_token_ranking": formulas.list_ranking(per_token, scores),
    }
