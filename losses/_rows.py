"""Sums over the rows of a batch, each with its weight: what totals and metrics are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch
from ._scored import where_mask


def mean_metric(values: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) of ``values [N]`` over the rows in ``where``, as ``LossOutput.metrics`` wants it."""
    values = values.detach()
    if where is None:
        return values.sum(), torch.full((), float(values.numel()), device=values.device)
    return where_mask(values, where).sum(), where.sum().to(torch.float32)


def row_weights(batch: Batch, like: Tensor) -> Tensor:
    """Returns the weights of the rows, ``[N]``, ones where the batch carries none, in the dtype of ``like``."""
    if batch.weight is None:
        return torch.ones(len(batch), dtype=like.dtype, device=like.device)
    return batch.weight.detach().to(like)


def weighted_total(values: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
    """Returns the detached 0-dim sum of ``values [N]``, weighted as the rows are; rows of weight 0 add nothing."""
    weights = row_weights(batch, values)
    counts = weights != 0 if where is None else where & (weights != 0)
    return (where_mask(values.detach(), counts) * weights).sum()


def row_metric(values: Tensor, batch: Batch, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) of ``values [N]`` over the rows in ``where`` that count, that is whose weight is not 0."""
    counts = row_weights(batch, values) != 0
    return mean_metric(values, counts if where is None else counts & where)
