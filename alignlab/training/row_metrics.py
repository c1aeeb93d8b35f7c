"""Metrics of rows: sums and counts that add over micro-batches, ranks and steps, under TRL's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignlab.losses import Batch, Labelled, Listed, LossOutput, Scored
from alignlab.runtime import gathered

from .batch import contributions, real_rows, take_rows
from .list_metrics import ends, list_means, orders

Metrics = dict[str, tuple[Tensor, Tensor]]


def _sum_count(values: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns (sum, count) of a row statistic in float64, so that sums over many rows lose nothing."""
    values = values.detach().double()
    if where is None:
        return values.sum(), values.new_full((), values.numel())
    return torch.where(where, values, torch.zeros((), dtype=torch.float64, device=values.device)).sum(), where.sum()


def _completion_metrics(name: str, scored: Scored, where: Tensor | None = None) -> Metrics:
    lengths = scored.mask.sum(-1)
    if scored.values is not None:  # a reward model has no log-probabilities
        return {f"lengths/{name}": _sum_count(lengths, where)}
    per_token = scored.sum_logps / lengths.clamp(min=1)
    return {
        f"logps/{name}": _sum_count(scored.sum_logps, where),
        f"logps_per_token/{name}": _sum_count(per_token, where),
        f"lengths/{name}": _sum_count(lengths, where),
    }


def row_metrics(output: LossOutput, batch: Batch, groups: tuple[str, ...]) -> Metrics:
    """Returns name -> (sum, count) over the rows of a micro-batch, under TRL's names, plus the loss's own metrics.

    Accuracy is the share of pairs with chosen reward > rejected reward, strictly: 0 where policy == reference. Of a
    list the best completion stands for chosen and the worst for rejected (the mean of equally good ones), and its
    accuracy is the share of its pairs that are ordered right, so that every list counts the same.
    """
    metrics: Metrics = {"objective": _sum_count(contributions(output, batch))}
    if isinstance(batch, Labelled):
        good = batch.desirable
        metrics |= _completion_metrics("chosen", batch.completions, good)
        metrics |= _completion_metrics("rejected", batch.completions, ~good)
        if output.rewards is not None:
            metrics["rewards/chosen"] = _sum_count(output.rewards, good)
            metrics["rewards/rejected"] = _sum_count(output.rewards, ~good)
    elif isinstance(batch, Listed):
        metrics |= _list_metrics(output, batch, groups)
    else:
        metrics |= _completion_metrics("chosen", batch.chosen)
        if batch.rejected.mask.shape[1]:  # a loss that does without it has it scored in evaluation only
            metrics |= _completion_metrics("rejected", batch.rejected)
        if output.chosen_rewards is not None and output.rejected_rewards is not None:
            chosen, rejected = output.chosen_rewards, output.rejected_rewards
            metrics["rewards/chosen"], metrics["rewards/rejected"] = _sum_count(chosen), _sum_count(rejected)
            margins = chosen - rejected
            metrics |= margin_metrics(margins, margins > 0, batch.group, groups)
    if batch.group is not None:
        for index, name in enumerate(groups):
            metrics[f"group/{name}/loss"] = _sum_count(output.loss, batch.group == index)
    return metrics | output.metrics  # a loss that weighs rows knows better what to call a group's loss


def _list_metrics(output: LossOutput, batch: Listed, groups: tuple[str, ...]) -> Metrics:
    scored, metrics = batch.completions, Metrics()
    lengths, best_and_worst = scored.mask.sum(-1), ends(batch)
    for name, where in zip(("chosen", "rejected"), best_and_worst, strict=True):
        metrics[f"lengths/{name}"] = _sum_count(list_means(lengths, where))
        if scored.values is None:
            metrics[f"logps/{name}"] = _sum_count(list_means(scored.sum_logps, where))
            metrics[f"logps_per_token/{name}"] = _sum_count(list_means(scored.sum_logps / lengths.clamp(min=1), where))
    if output.rewards is not None:
        chosen, rejected = (list_means(output.rewards, where) for where in best_and_worst)
        metrics["rewards/chosen"], metrics["rewards/rejected"] = _sum_count(chosen), _sum_count(rejected)
        found = orders(output, batch)
        metrics |= margin_metrics(chosen - rejected, found.pop("accuracies"), batch.group, groups)
        metrics |= {f"rewards/{name}": _sum_count(values) for name, values in found.items()}
    return metrics


def margin_metrics(margins: Tensor, accuracies: Tensor, group: Tensor | None, groups: tuple[str, ...]) -> Metrics:
    """Returns margin and accuracy of pairs, overall and per group."""
    metrics = {"rewards/margins": _sum_count(margins), "rewards/accuracies": _sum_count(accuracies)}
    if group is not None:
        for index, name in enumerate(groups):
            metrics[f"group/{name}/accuracy"] = _sum_count(accuracies, group == index)
            metrics[f"group/{name}/margin"] = _sum_count(margins, group == index)
    return metrics


def padding(layout: Mapping[str, Any]) -> Metrics:
    """Returns the share of a layout's positions that carry no token."""
    return {"padding": _sum_count((layout["shares"] == 0).flatten())}


class MetricSums:
    """Sums and counts of metrics since the last log, on the device, until they are reduced once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, metrics: Metrics) -> None:
        """Adds (sum, count) pairs to what is there."""
        for name, (total, count) in metrics.items():
            pair = torch.stack((total.detach().double(), count.detach().double()))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def drain(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (sum, count) as numbers, with one transfer, and starts anew."""
        found, self._sums = self.numbers(), {}
        return found

    def numbers(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (sum, count) as numbers, with one transfer."""
        if not self._sums:
            return {}
        names, values = list(self._sums), torch.stack(list(self._sums.values())).tolist()
        return {name: (total, count) for name, (total, count) in zip(names, values, strict=True)}


def added(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Returns the sums and counts of all parts."""
    sums: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + total, before[1] + count)
    return sums


def means(parts: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Returns the count-weighted mean of each metric over parts (ranks); a metric that no row had is left out.

    "rewards/margins" of labelled data, where no row is a pair, is the difference of the classes' means, and
    "group/worst_accuracy" the least of the groups' accuracies.
    """
    result = {name: total / count for name, (total, count) in added(parts).items() if count > 0}
    if "rewards/margins" not in result and {"rewards/chosen", "rewards/rejected"} <= result.keys():
        result["rewards/margins"] = result["rewards/chosen"] - result["rewards/rejected"]
    accuracies = [value for name, value in result.items() if name.startswith("group/") and name.endswith("/accuracy")]
    if accuracies:
        result["group/worst_accuracy"] = min(accuracies)
    return result


@dataclass
class Halves:
    """Rewards of split pairs: which pair each belongs to, whether it was the chosen half, its reward and group."""

    pair: Tensor
    chosen: Tensor
    reward: Tensor
    group: Tensor | None


def halves(output: LossOutput, batch: Labelled, pair: Tensor) -> Halves:
    """Returns what is needed to join labelled rows to pairs again, on the CPU."""
    assert output.rewards is not None, "a labelled loss returns rewards"
    group = None if batch.group is None else batch.group.cpu()
    return Halves(pair.cpu(), batch.desirable.cpu(), output.rewards.detach().double().cpu(), group)


def joined_margins(parts: list[Halves], groups: tuple[str, ...]) -> Metrics:
    """Returns margins and accuracies of the pairs whose halves were scored as labelled rows, on any rank."""
    if not parts:
        return {}
    pair, chosen = torch.cat([p.pair for p in parts]), torch.cat([p.chosen for p in parts])
    reward = torch.cat([p.reward for p in parts])
    group = None if parts[0].group is None else torch.cat([p.group for p in parts if p.group is not None])
    good, bad = torch.nonzero(chosen & (pair >= 0))[:, 0], torch.nonzero(~chosen & (pair >= 0))[:, 0]
    good, bad = good[torch.argsort(pair[good])], bad[torch.argsort(pair[bad])]
    if len(good) == 0 or not torch.equal(pair[good], pair[bad]):
        return {}
    margins = reward[good] - reward[bad]
    return margin_metrics(margins, margins > 0, None if group is None else group[good], groups)


class SetMetrics:
    """Metrics of an evaluation set as a whole, over its micro-batches and all ranks."""

    def __init__(self, groups: tuple[str, ...]) -> None:
        self.groups = groups
        self.rows = 0
        self._sums = MetricSums()
        self._halves: list[Halves] = []

    def add(self, output: LossOutput, batch: Batch, inputs: Mapping[str, Any]) -> None:
        """Adds what the loss said of a batch; ``inputs`` is what the batch was scored from."""
        self._sums.add(row_metrics(output, batch, self.groups))
        self.rows += len(batch)
        if isinstance(batch, Labelled) and output.rewards is not None:
            self._halves.append(halves(output, batch, take_rows(inputs["columns"]["pair"], real_rows(inputs))))

    def reduced(self) -> dict[str, float]:
        """Returns the metrics over all ranks, on each of them; pairs that were split into labelled rows count too."""
        joined = MetricSums()
        joined.add(joined_margins([one for found in gathered(self._halves) for one in found], self.groups))
        return means([*gathered(self._sums.drain()), joined.drain()])
