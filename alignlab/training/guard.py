"""What stops a run that would otherwise be silently wrong: a mismatched reference, a loss that is not a number."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from alignlab.losses import Labelled, Pairs, Scored

logger = logging.getLogger(__name__)
_NAMED = 5  # rows that a message names


def _rows(rows: Tensor, dataset: Any) -> str:
    """Names rows by their source, as far as the dataset knows it."""
    names = []
    for row in rows[:_NAMED].tolist():
        known = dataset is not None and "source" in getattr(dataset, "column_names", ())
        names.append(str(dataset[int(row)]["source"]) if known else f"row {row}")
    more = len(rows) - _NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def check_finite(row_losses: Tensor, rows: Tensor, dataset: Any) -> None:
    """Raises FloatingPointError naming the rows whose loss is NaN or infinite."""
    bad = ~torch.isfinite(row_losses.detach())
    if bool(bad.any()):
        raise FloatingPointError(f"the loss is not a finite number for {_rows(rows[bad.to(rows.device)], dataset)}")


def _distance(scored: Scored) -> Tensor:
    """Returns the mean |log p - log q| over the tokens that count, ``[N]``, in nats."""
    ref = scored.require("ref_logps")
    difference = torch.where(scored.mask, scored.logps.detach().float() - ref.float(), torch.zeros_like(ref).float())
    return difference.abs().sum(-1) / scored.mask.sum(-1).clamp(min=1)


def check_reference(
    batch: Pairs | Labelled, rows: Tensor, dataset: Any, *, tolerance: float, from_policy: bool, stop: bool
) -> None:
    """Holds the policy against its reference before the first optimiser step, where both must be one model.

    Args:
        tolerance: allowed mean absolute difference per token, nats.
        from_policy: whether the reference was made from the policy; otherwise the distance is only reported.
        stop: whether to raise; otherwise a mismatch is a warning.

    Raises:
        ValueError: naming the rows that differ.
    """
    if len(batch) == 0:
        return
    parts = [batch.completions] if isinstance(batch, Labelled) else [batch.chosen, batch.rejected]
    distance = torch.stack([_distance(part) for part in parts]).amax(0)
    largest = distance.max().item()
    if not from_policy:
        logger.info("before the first step the policy is up to %.3g nats a token from the given reference", largest)
        return
    bad = distance > tolerance
    if not bool(bad.any()):
        return
    message = (
        f"before the first step policy and reference differ by up to {largest:.3g} nats a token (allowed "
        f"{tolerance:g}) on {int(bad.sum())} of {len(distance)} rows: {_rows(rows[bad.to(rows.device)], dataset)}. "
        "A wrong reference, dropout left on, or an adapter that was not loaded looks like this"
    )
    if stop:
        raise ValueError(f"{message}. To train all the same, set allow_reference_mismatch: true")
    logger.warning(message)
