"""Group-robust optimisation: an adversary weights groups of rows by their losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ._base import Batch, Facts, Loss, LossOutput, Metrics, Needs, Totals, bind
from ._checks import check_interval, check_non_negative
from ._rows import mean_metric, row_weights
from ._scored import where_mask
from .dpo import DPO


class GroupRobust(Loss):
    """Group-robust optimisation: minimises the worst mixture of the groups' losses under any base loss.

    Formula: ``sum_g alpha_g G_g`` with ``alpha <- softmax(log alpha + step_size (sg(G) + C / sqrt(N_g)))``, moved
    before it is used. With S_g the sum of the base loss over the rows of group g, N_g rows of N in the data and B rows
    in the step: total ``G_g = N / N_g * S_g``; total_mean ``N / N_g * S_g / B``; batch_mean ``S_g / rows of g`` (0
    without any).

    The weights move in log space: the official ``alpha * exp(step_size * G)`` overflows under summed IPO losses. They
    are buffers, so a checkpoint carries them, and never move in evaluation.

    ``update_order: step`` sums G over all micro-batches and ranks of the optimiser step and moves alpha once.
    ``micro_batch`` is the official order: each micro-batch of each rank moves alpha by its own G, so the result depends
    on the batch split; as in the official code the weights of ranks are not synchronised.

    Args:
        base: the loss of a row; DPO with its defaults where none is given. With ``update_order: step`` and adaptive
            weights the base must not be coupled over the step itself: its losses would depend on sums that are not
            known yet when the groups' losses are summed.
        step_size: eta, >= 0. For losses in the hundreds (summed IPO) the published runs take 5e-7.
        mode: scale of the groups' losses, see the formula. ``total`` grows with B.
        group_size_correction: C >= 0; small groups are weighted as if their loss were C / sqrt(N_g) higher.
        weighting: "adaptive" moves alpha, "fixed" holds it at ``initial_weights``, which uniform are the usual
            importance weights (each group the same say, a row the weight N / N_g; ``is_dpo``). "importance" holds it
            proportional to 1 / N_g, as the official code does: a row then counts by the square, which overshoots.
        initial_weights: weight per group name, positive with sum 1; uniform where none are given.
        chi: in [0, 1]; below 1 the used weights are ``(1 - chi) / K + chi * alpha`` (the bandit code also
            moves alpha by chi * G: multiply step_size by chi for that).
        update_order: "step" or "micro_batch".

    Raises:
        ValueError: an option is out of its range, the base cannot be used, or rows have no groups.

    Source: Ramesh et al. 2024, arXiv:2405.20304 (its "GRPO" is not group relative policy optimisation).
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    aliases: ClassVar = {
        "gr_dpo": {"base": "dpo"},
        "gr_ipo": {"base": "ipo"},
        "is_dpo": {"base": "dpo", "weighting": "fixed"},
    }
    log_weights: Tensor
    group_rows: Tensor

    def __init__(
        self,
        base: Loss | None = None,
        step_size: float = 0.01,
        mode: Literal["total_mean", "total", "batch_mean"] = "total_mean",
        group_size_correction: float = 0.0,
        weighting: Literal["adaptive", "importance", "fixed"] = "adaptive",
        initial_weights: Mapping[str, float] | None = None,
        chi: float = 1.0,
        update_order: Literal["step", "micro_batch"] = "step",
    ) -> None:
        super().__init__()
        self.base = DPO() if base is None else base
        self.step_size = check_non_negative("step_size", step_size)
        self.mode = mode
        self.group_size_correction = check_non_negative("group_size_correction", group_size_correction)
        self.weighting = weighting
        self.initial_weights = initial_weights
        self.chi = check_interval("chi", chi, 0.0, 1.0, closed=True)
        self.update_order = update_order
        self.group_names: tuple[str, ...] = ()
        self.stops_gradient = self.base.stops_gradient
        self.needs = self._needs()
        if weighting == "importance" and initial_weights is not None:
            raise ValueError("initial_weights: weighting 'importance' derives them from the data; leave them out")
        self.register_buffer("log_weights", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("group_rows", torch.zeros(0, dtype=torch.float64), persistent=False)

    def _needs(self) -> Needs:
        base = self.base.needs
        late = base.coupled == "step" and base.totals_in_evaluation
        base = replace(base, totals_in_evaluation=late or self.mode != "total_mean")
        columns = (*base.columns, *({"group"} - set(base.columns)))
        name = type(self.base).__name__
        if any(isinstance(part, GroupRobust) for part in self.base.modules()):
            raise ValueError(f"base: {name} weights groups already; groups are weighted once")
        if base.coupled == "micro_batch":
            raise ValueError(f"base: {name} couples the rows of a micro-batch, so its losses belong to no single group")
        if self.weighting != "adaptive":
            return replace(base, columns=columns, coupled="step")
        if self.update_order == "micro_batch":
            return replace(base, columns=columns, coupled="micro_batch", totals_from="scores")
        if base.coupled == "step":
            raise ValueError(
                f"base: {name} needs sums over the whole optimiser step before it has a loss, and"
                " adaptive group weights need that loss before the step; write update_order: micro_batch, or fixed or"
                " importance weighting"
            )
        return replace(base, columns=columns, coupled="step", totals_from="scores")

    def bind(self, facts: Facts) -> None:
        """Takes the groups' names and row counts, and sets the initial weights."""
        empty = [name for name, rows in facts.groups.items() if rows <= 0]
        if not facts.groups or empty:
            found = f"these groups have no rows: {empty}" if empty else "the rows carry none"
            raise ValueError(f"group_robust needs rows with a column 'group', each group with a row; {found}")
        bind("base", self.base, facts)
        self.group_names = tuple(facts.groups)
        self.group_rows = torch.tensor(list(facts.groups.values()), dtype=torch.float64)
        self.log_weights = self._initial_weights().log()

    def _initial_weights(self) -> Tensor:
        given = self.initial_weights
        if self.weighting == "importance":
            return (1 / self.group_rows) / (1 / self.group_rows).sum()
        if given is None:
            return torch.full_like(self.group_rows, 1 / len(self.group_rows))
        if set(given) != set(self.group_names):
            raise ValueError(f"initial_weights name the groups {sorted(given)}, the data {sorted(self.group_names)}")
        if min(given.values()) <= 0 or abs(sum(given.values()) - 1) > 1e-6:
            raise ValueError(f"initial_weights must be positive and sum to 1, found {dict(given)}")
        return torch.tensor([given[name] for name in self.group_names], dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """The weights alpha of the groups, ``[K]`` float64, as the last optimiser step left them."""
        return self._used(self.log_weights)

    def totals(self, batch: Batch) -> Totals:
        """Returns row counts (and summed losses) by group, and what the base sums, under ``base.`` names."""
        totals = {f"base.{name}": value for name, value in self.base.totals(batch).items()}
        counts = self._by_group(torch.ones(len(batch), dtype=torch.float64, device=self._group(batch).device), batch)
        totals["group_counts"] = counts
        if self.weighting == "adaptive":
            with torch.no_grad():
                losses = self.base(batch, _base_totals(totals) or None).loss
            totals["group_losses"] = self._by_group(losses.double(), batch)
        return totals

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        totals = self.totals(batch) if totals is None else totals
        out = self.base(batch, _base_totals(totals) or None)
        assert isinstance(out, LossOutput)
        log_weights = self._moved(totals) if self.training else self.log_weights
        alpha = self._used(log_weights).to(out.loss.device)
        coefficients = alpha * self._scales(totals).to(alpha) * self._rows(totals).to(alpha)
        out.metrics = out.metrics | self._metrics(out.loss, batch, alpha)
        out.loss = coefficients.to(out.loss)[self._group(batch)] * out.loss
        return out

    def update(self, totals: Totals) -> None:
        self.base.update(_base_totals(totals))
        self.log_weights = self._moved(totals)

    def _moved(self, totals: Totals) -> Tensor:
        """Returns the log weights after one step of exponentiated gradient ascent; the state itself stays."""
        if self.weighting != "adaptive":
            return self.log_weights
        losses = totals["group_losses"].to(self.log_weights)
        adjusted = self._scales(totals).to(losses) * losses + self.group_size_correction / self.group_rows.sqrt()
        return torch.log_softmax(self.log_weights + self.step_size * adjusted, dim=0)

    def _used(self, log_weights: Tensor) -> Tensor:
        return (1 - self.chi) / max(len(log_weights), 1) + self.chi * log_weights.exp()

    def _scales(self, totals: Totals) -> Tensor:
        """Returns the factors ``[K]`` that turn the summed losses of the groups into G."""
        counts = totals["group_counts"]
        if self.mode == "batch_mean":
            return torch.where(counts > 0, 1 / counts.where(counts > 0, 1.0), 0.0)
        shares = (self.group_rows.sum() / self.group_rows).to(counts)
        return shares if self.mode == "total" else shares / self._rows(totals).clamp(min=1e-30)

    def _rows(self, totals: Totals) -> Tensor:
        return totals["group_counts"].sum()

    def _group(self, batch: Batch) -> Tensor:
        if batch.group is None:
            raise ValueError("group_robust needs the column 'group' of every row, and the batch has none")
        if not self.group_names:
            raise ValueError("group_robust does not know its groups yet: call bind(facts) before the first batch")
        return batch.group

    def _by_group(self, values: Tensor, batch: Batch) -> Tensor:
        """Returns the weighted sums ``[K]`` of ``values [N]`` by group."""
        weights = row_weights(batch, values)
        sums = values.new_zeros(len(self.group_names))
        return sums.index_add(0, self._group(batch), where_mask(values, weights != 0) * weights)

    def _metrics(self, losses: Tensor, batch: Batch, alpha: Tensor) -> Metrics:
        group, one = self._group(batch), torch.ones((), device=losses.device)
        metrics = {"group_weights/entropy": (-(alpha * alpha.clamp(min=1e-300).log()).sum().float(), one)}
        counts = row_weights(batch, losses) != 0
        for index, name in enumerate(self.group_names):
            metrics[f"group/{name}/weight"] = (alpha[index].float(), one)
            metrics[f"group/{name}/loss"] = mean_metric(losses, (group == index) & counts)
        return metrics


def _base_totals(totals: Totals) -> Totals:
    return {name.removeprefix("base."): value for name, value in totals.items() if name.startswith("base.")}
