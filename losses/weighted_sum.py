"""A weighted sum of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import nn

from ._base import Batch, Facts, Loss, LossOutput, Metrics, Needs, Totals, bind
from ._rows import row_metric
from .dpo import DPO
from .sft import SFT

ORDER: tuple[Literal["masks", "mismatched", "scores"], ...] = ("masks", "mismatched", "scores")


class WeightedSum(Loss):
    """A weighted sum of losses of the same kind of data, each logged by itself.

    Formula: ``sum_j weights_j * parts_j``.

    The rewards reported are those of the first part that has any.

    Args:
        parts: the losses; DPO and SFT where none are given.
        weights: one finite number for each part; 1 where none are given.

    Raises:
        ValueError: there are no parts, the weights are as many as the parts not, or the parts need what cannot be had
            together: pairs and labelled rows, or sums over the step and over the micro-batch.

    Source: TRL's ``loss_type`` lists.
    Elsewhere: TRL ``loss_type: [...]``, ``loss_weights`` (one shared beta).
    """

    def __init__(self, parts: Sequence[Loss] | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        parts = [DPO(), SFT()] if parts is None else parts
        if not parts:
            raise ValueError("parts must hold at least one loss, found none")
        if weights is not None and len(weights) != len(parts):
            raise ValueError(f"weights must be as many as the {len(parts)} parts, found {len(weights)}")
        self.weights = [1.0] * len(parts) if weights is None else list(weights)
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"weights must be finite, found {self.weights}")
        if not any(self.weights):
            raise ValueError("weights are all 0: nothing would be learned")
        self.parts = nn.ModuleList(parts)
        self.needs = merged([part.needs for part in parts])
        self.stops_gradient = tuple({field for part in parts for field in part.stops_gradient})
        self.labels = _labels(parts)

    def bind(self, facts: Facts) -> None:
        for j, part in enumerate(self._parts()):
            bind(f"parts[{j}]", part, facts)

    def totals(self, batch: Batch) -> Totals:
        return {f"{j}.{n}": v for j, part in enumerate(self._parts()) for n, v in part.totals(batch).items()}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        outs: list[LossOutput] = [part(batch, _own(totals, j)) for j, part in enumerate(self._parts())]
        first = next((out for out in outs if out.rewards is not None or out.chosen_rewards is not None), outs[0])
        loss = torch.stack([w * out.loss for w, out in zip(self.weights, outs, strict=True)]).sum(0)
        metrics: Metrics = {}
        for label, out in zip(self.labels, outs, strict=True):
            metrics[f"loss/{label}"] = row_metric(out.loss, batch)
            for name, value in out.metrics.items():
                metrics[f"{name}/{label}" if name in metrics else name] = value
        return LossOutput(loss, first.chosen_rewards, first.rejected_rewards, first.rewards, metrics)

    def update(self, totals: Totals) -> None:
        for j, part in enumerate(self._parts()):
            part.update(_own(totals, j) or {})

    def _parts(self) -> list[Loss]:
        return [part for part in self.parts if isinstance(part, Loss)]


def merged(needs: Sequence[Needs]) -> Needs:
    """Returns what all of ``needs`` ask for together, or raises ValueError if they cannot be met together."""
    kinds = {need.data for need in needs}
    couplings = {need.coupled for need in needs} - {"none"}
    if len(kinds) > 1:
        raise ValueError(f"parts must read the same kind of data, found {' and '.join(sorted(kinds))}")
    if len(couplings) > 1:
        raise ValueError("parts must be coupled over the same rows, found the optimiser step and the micro-batch")
    rewards = {need.rewards for need in needs if need.rewards}
    if len(rewards) > 1:
        raise ValueError(f"parts must read the same number of explicit rewards, found {sorted(rewards)}")
    values = {need.values for need in needs}
    if len(values) > 1:
        raise ValueError(f"parts must read the same number of values of a head, found {sorted(values)}")
    either: dict[str, Any] = {
        entry.name: any(getattr(need, entry.name) for need in needs) for entry in fields(Needs) if entry.type == "bool"
    }
    either["totals_in_evaluation"] = any(need.totals_in_evaluation for need in needs if need.coupled != "none")
    sources = [ORDER.index(need.totals_from) for need in needs if need.coupled != "none"]
    return replace(
        needs[0],
        **either,
        columns=tuple(dict.fromkeys(name for need in needs for name in need.columns)),
        scorers=tuple(dict.fromkeys(name for need in needs for name in need.scorers)),
        rewards=max(need.rewards for need in needs),
        coupled=next(iter(couplings), "none"),
        totals_from=ORDER[max(sources, default=0)],
    )


def _own(totals: Totals | None, index: int) -> Totals | None:
    """Returns the totals of one part; None where none were given."""
    if totals is None:
        return None
    prefix = f"{index}."
    return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}


def _labels(parts: Sequence[Loss]) -> list[str]:
    """Returns the class names of the parts in small letters, numbered where one comes twice."""
    names = [type(part).__name__.lower() for part in parts]
    return [name if names.count(name) == 1 else f"{name}_{j}" for j, name in enumerate(names)]
