"""Scores of a micro-batch to the batch of rows that a loss is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from alignlab.data import LIST, PROMPT
from alignlab.losses import Batch, Labelled, Listed, LossOutput, Needs, Pairs, Scored
from alignlab.reference import REFERENCE

T = TypeVar("T")


@dataclass
class FrozenScores:
    """What frozen models say of a micro-batch: scorer name -> ``[F, N, T]`` float32, mismatched completions apart."""

    completions: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, Tensor] = field(default_factory=dict)


def _scored(
    index: int | slice, layout: Mapping[str, Any], policy: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> Scored:
    """Returns field ``index`` of a scored layout, ``[N, T]``, or K fields as those of lists, ``[N, K, T]``.

    Log-probabilities that nothing was to score are NaN.
    """

    def of(values: Tensor) -> Tensor:
        return values[index].transpose(0, 1) if isinstance(index, slice) else values[index]

    mask = of(layout["mask"])
    if "values" in policy:
        return Scored(torch.full(mask.shape, torch.nan, device=mask.device), mask, values=of(policy["values"]))
    scored = Scored(of(policy["logps"]), mask)
    scored.kl = of(policy["kl"]) if "kl" in policy else None
    scored.second_moment = of(policy["second_moment"]) if "second_moment" in policy else None
    scored.ref_logps = of(frozen[REFERENCE]) if REFERENCE in frozen else None
    scored.scorers = {name: of(values) for name, values in frozen.items() if name != REFERENCE}
    return scored


def loss_batch(
    batch: Mapping[str, Any],
    needs: Needs,
    policy: Mapping[str, Tensor],
    frozen: FrozenScores,
    mismatched: Mapping[str, Tensor] | None = None,
) -> Batch:
    """Returns what a loss is given: the rows of a micro-batch that count, fillers left out.

    Args:
        policy: scores of ``batch["completions"]`` under the policy (``scoring.score``), or its "values".
        mismatched: scores of ``batch["mismatched"]`` under the policy.
    """
    layout, columns = batch["completions"], batch["columns"]
    names = [name for name in layout["fields"] if name != PROMPT]  # it comes last
    indices: Mapping[str, int | slice] = {name: index for index, name in enumerate(names)}
    if needs.data == "lists":
        indices = {LIST: slice(len(names))}
    scored = {name: _scored(index, layout, policy, frozen.completions) for name, index in indices.items()}
    if PROMPT in layout["fields"]:
        index = layout["fields"].index(PROMPT)
        for one in scored.values():
            one.prompt_logps, one.prompt_mask = policy["logps"][index], layout["mask"][index]
    if "rewards" in columns and needs.data == "lists":
        scored[LIST].rewards = columns["rewards"].transpose(0, 1)
    elif "rewards" in columns:
        for one, rewards in zip(scored.values(), columns["rewards"], strict=False):
            one.rewards = rewards
    shared = {name: columns.get(name) for name in ("group", "weight")}
    result: Batch
    if needs.data == "lists":
        result = Listed(scored[LIST], columns["scores"], **shared)
    elif needs.data == "labelled":
        other = None
        if mismatched is not None:
            other = _scored(0, batch["mismatched"], mismatched, frozen.mismatched)
        result = Labelled(scored["completion"], columns["label"], mismatched=other, **shared)
    else:
        numbers = {name: columns.get(name) for name in ("margin", "score_chosen", "score_rejected")}
        rejected = scored.get("rejected") or _without_tokens(scored["chosen"])
        result = Pairs(
            scored["chosen"], rejected, gold=scored.get("gold"), online=scored.get("online"), **shared, **numbers
        )
    return take_rows(result, real_rows(batch))


def _without_tokens(like: Scored) -> Scored:
    """Returns completions of the same rows that have no tokens: what was not scored."""
    return Scored(like.logps[:, :0].detach(), like.mask[:, :0])


def real_rows(batch: Mapping[str, Any]) -> Tensor | None:
    """Returns the indices of the rows of a micro-batch that are no fillers, on its device; None where all are real.

    The host knows them: nothing waits for the device.
    """
    real: np.ndarray[Any, Any] = batch["real"]
    if real.all():
        return None
    return torch.from_numpy(np.flatnonzero(real)).to(batch["completions"]["mask"].device)


def take_rows(value: T, rows: Tensor | None) -> T:
    """Returns ``value`` (a tensor, or a dataclass or mapping of tensors) with rows of these indices; None: all."""
    if rows is None:
        return value
    if isinstance(value, Tensor):
        return value[rows]  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {name: take_rows(item, rows) for name, item in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: take_rows(getattr(value, f.name), rows) for f in fields(value)})
    return value


def contributions(output: LossOutput, batch: Batch) -> Tensor:
    """Returns what each row adds to the objective before it is divided by the step's number of rows: w_i * loss_i."""
    return output.loss if batch.weight is None else output.loss * batch.weight.to(output.loss.dtype)


def any_scores(batch: Batch) -> Tensor:
    """Returns scores that keep the micro-batch's graph, also where no row counts."""
    return (batch.chosen if isinstance(batch, Pairs) else batch.completions).leading
