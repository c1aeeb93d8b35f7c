"""The negative log-likelihood term that several losses add, with its three reductions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._base import Batch, Metrics, Totals
from ._rows import row_metric, row_weights, weighted_total
from ._scored import Scored, where_mask

Reduction = Literal["token", "example", "sum"]


def counted(scored: Scored, prompt: bool = False) -> tuple[Tensor, Tensor]:
    """Returns (sum of log-probabilities, number of tokens), both ``[N]``, with the prompt's tokens where ``prompt``."""
    total, tokens = scored.sum_logps, scored.lengths
    if prompt:
        mask = scored.require("prompt_mask")
        total = total + where_mask(scored.require("prompt_logps"), mask).sum(-1)
        tokens = tokens + mask.sum(-1)
    return total, tokens


def nll_totals(batch: Batch, scored: Scored, prompt: bool = False, where: Tensor | None = None) -> Totals:
    """Returns weighted counts of rows, of rows that are learned from (``where``) and of their tokens.

    Reads masks only, so they are known before any forward.
    """
    dtype = torch.float64 if scored.logps.dtype == torch.float64 else torch.float32
    tokens = scored.mask.sum(-1).to(dtype)
    if prompt:
        tokens = tokens + scored.require("prompt_mask").sum(-1)
    ones = torch.ones_like(tokens)
    return {
        "rows": row_weights(batch, ones).sum(),
        "learned_rows": weighted_total(ones, batch, where),
        "tokens": weighted_total(tokens, batch, where),
    }


def nll_rows(
    scored: Scored, reduction: Reduction, totals: Totals, prompt: bool = False, where: Tensor | None = None
) -> Tensor:
    """Returns ``[N]`` values whose mean over the rows of the step is the reduced NLL of the rows in ``where``.

    With L_i the sum of log-probabilities of row i and n_i its tokens:
    example: ``mean_i(-L_i / n_i)``; sum: ``mean_i(-L_i)``; token: ``-sum_i(L_i) / sum_i(n_i)``, that is each row
    arrives as ``-L_i * rows / tokens``.
    """
    total, tokens = counted(scored, prompt)
    if reduction == "token":
        values = -total * (totals["rows"] / totals["tokens"].clamp(min=1.0))
    else:
        values = -total / tokens if reduction == "example" else -total
        if where is not None:
            values = values * (totals["rows"] / totals["learned_rows"].clamp(min=1.0))
    return values if where is None else where_mask(values, where)


def nll_metric(
    batch: Batch, scored: Scored, reduction: Reduction, prompt: bool = False, where: Tensor | None = None
) -> Metrics:
    """Returns ``nll_loss`` as (sum, count) under the same reduction; rows of weight 0 do not count."""
    total, tokens = counted(scored, prompt)
    if reduction == "token":
        return {"nll_loss": (row_metric(-total, batch, where)[0], row_metric(tokens, batch, where)[0])}
    return {"nll_loss": row_metric(-total / tokens if reduction == "example" else -total, batch, where)}
