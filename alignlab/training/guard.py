"""What stops a run that would otherwise be silently wrong: a mismatched reference, a loss that is not a number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.losses import Batch, Labelled, Listed, Scored
from alignlab.runtime import evaluating
from alignlab.scoring import jolted

logger = logging.getLogger(__name__)
_NAMED = 5  # rows that a message names
_TIMES, _DRAWS = 3, 3


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


@dataclass(frozen=True)
class Quiet:
    """A micro-batch's scores under the policy without dropout and NEFTune's noise, and what rounding does to them.

    Attributes:
        logps: ``[F, N, T]``, of ``fields``. real: ``[N]``, the rows that are no fillers.
        mean, largest: how far rounding moves a token's score, nats; 0 where it was not measured.
    """

    logps: Tensor
    fields: Sequence[str]
    real: Tensor
    mean: float = 0.0
    largest: float = 0.0

    def allowed(self, counts: Tensor) -> Tensor:
        """Returns how far rows of so many tokens may be from a reference that is the policy, nats a token, ``[N]``.

        3 (mean + largest / tokens): three times what rounding does to it, a token's worst case added once, since the
        mean of few tokens says little. It holds for a micro-batch as a whole, too, and is sharper there.
        """
        return _TIMES * (self.mean + self.largest / counts.clamp(min=1))

    def of(self, field: str) -> Tensor:
        """Returns the scores of a field's rows, fillers left out."""
        return self.logps[list(self.fields).index(field)][self.real.to(self.logps.device)]


def quiet_scores(score: Callable[[nn.Module], Tensor], model: nn.Module, inputs: Mapping[str, Any]) -> Quiet:
    """Scores a micro-batch in evaluation mode: as it is, and with its embeddings rounded otherwise.

    Args:
        score: ``[F, N, T]`` of the micro-batch under a model, in the run's autocast.
    """
    layout = inputs["completions"]
    with evaluating(model):
        logps = score(model)
        moved = []
        for draw in range(_DRAWS):
            with jolted(model, draw):
                moved.append((score(model) - logps)[layout["mask"]].abs())
    least = 8 * torch.finfo(torch.float32).eps * logps.abs().max()
    noise = torch.stack(moved).clamp(min=least.item())
    mean, largest = (noise.mean().item(), noise.max().item()) if noise.numel() else (0.0, 0.0)
    return Quiet(logps, layout["fields"], torch.as_tensor(inputs["real"]), mean, largest)


def _distance(scored: Scored, logps: Tensor) -> Tensor:
    """Returns the mean |log p - log q| over the tokens that count, ``[N]``, in nats."""
    ref = scored.require("ref_logps")
    difference = torch.where(scored.mask, logps.detach().float() - ref.float(), torch.zeros_like(ref).float())
    return difference.abs().sum(-1) / scored.mask.sum(-1).clamp(min=1)


def check_reference(
    batch: Batch,
    quiet: Quiet,
    rows: Tensor,
    dataset: Any,
    *,
    tolerance: float | None,
    from_policy: bool,
    stop: bool,
) -> None:
    """Holds the policy against its reference before the first optimiser step, where both must be one model.

    Args:
        quiet: the policy's scores of the micro-batch, and what rounding does to them.
        tolerance: allowed mean absolute difference per token, nats; None: what rounding explains.
        from_policy: whether the reference was made from the policy; otherwise the distance is only reported.
        stop: whether to raise; otherwise a mismatch is a warning.

    Raises:
        ValueError: naming the rows that differ.
    """
    if len(batch) == 0:
        return
    sides = {name: one for name, one in _sides(batch, quiet.fields).items() if name in quiet.fields}
    distance = torch.stack([_distance(one, quiet.of(name)) for name, one in sides.items()])
    largest = distance.max().item()
    if not from_policy:
        logger.info("before the first step the policy is up to %.3g nats a token from the given reference", largest)
        return
    limits = _limits(distance, torch.stack([one.mask.sum(-1) for one in sides.values()]), quiet, tolerance)
    noise = torch.stack([(one.logps.detach() - quiet.of(name)).abs().max() for name, one in sides.items()]).max()
    if noise > limits.max():
        _say_noise()
    over = ~(distance <= limits)
    bad = over.any(0)
    if not bool(bad.any()):
        return
    message = (
        f"before the first step policy and reference differ by up to {largest:.3g} nats a token (allowed "
        f"{limits[over].min().item():.3g}) on {int(bad.sum())} of {len(bad)} rows: "
        f"{_rows(rows[bad.to(rows.device)], dataset)}. Both were scored without dropout; a wrong reference, one "
        "computed in fewer bits, or an adapter that was not loaded looks like this"
    )
    if stop:
        raise ValueError(f"{message}. To train all the same, set allow_reference_mismatch: true")
    logger.warning(message)


def _sides(batch: Batch, fields: Sequence[str]) -> dict[str, Scored]:
    """Returns the completions of a batch by their field; a list's stand in the order of the layout's fields."""
    if isinstance(batch, Labelled):
        return {"completion": batch.completions}
    if isinstance(batch, Listed):
        each = (getattr(batch.completions, name).unbind(1) for name in ("logps", "mask", "ref_logps"))
        parts = zip(*each, strict=True)
        return {field: Scored(*part) for field, part in zip(fields, parts, strict=False)}  # the prompt's comes last
    return {"chosen": batch.chosen, "rejected": batch.rejected}


def _limits(distance: Tensor, counts: Tensor, quiet: Quiet, tolerance: float | None) -> Tensor:
    """Returns how far each row may be from the reference, nats a token, ``[F, N]`` as the distances and token counts.

    Where the micro-batch as a whole is farther than rounding explains, no row may be farther than that either.
    """
    if tolerance is not None:
        return torch.full_like(distance, tolerance)
    limits, whole = quiet.allowed(counts), quiet.allowed(counts.sum())
    if (distance * counts).sum() / counts.sum().clamp(min=1) > whole:
        limits = limits.clamp(max=float(whole))
    return limits


@cache
def _say_noise() -> None:
    logger.info(
        "dropout or NEFTune moves the policy's scores in training; the guard before the first step leaves it out"
    )
