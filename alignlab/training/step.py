"""One optimiser step: totals of coupled losses, weights of rows, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from alignlab import scoring
from alignlab.losses import Batch, Loss, LossOutput, Totals
from alignlab.reference import REFERENCE, Frozen
from alignlab.runtime import uncompiled
from alignlab.scoring import LazyHead, Router

from .batch import FrozenScores, any_scores, contributions, loss_batch
from .guard import Quiet, quiet_scores
from .online import OnlineSampler


class PreferenceStep:
    """Runs the micro-batches of an optimiser step through policy, frozen models and loss.

    The objective of a step is ``sum_i w_i * loss_i / rows`` over its rows on all ranks and in all micro-batches.

    Args:
        loss: the loss. frozen: the frozen models it needs, by name.
        device: where batches go. autocast: the context of every forward.
        over_ranks: sums a tensor over ranks. ranks: how many there are.
        use_previous_totals: score-coupled losses take the totals of the step before, which saves the pass
            without gradient that accumulated micro-batches otherwise need.
        router: the routers whose load-balancing loss, over all ranks, joins the objective, micro-batches weighted by
            their rows.

    Attributes:
        online: what draws answers in the step, for losses that need them; None for all others.
    """

    online: OnlineSampler | None = None

    def __init__(
        self,
        loss: Loss,
        frozen: Mapping[str, Frozen],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        over_ranks: Callable[[Tensor], Tensor],
        ranks: int = 1,
        *,
        use_previous_totals: bool = False,
        router: Router | None = None,
    ) -> None:
        self.loss, self.needs, self.frozen = loss, loss.needs, frozen
        self.device, self.autocast, self.over_ranks, self.ranks = device, autocast, over_ranks, ranks
        self.router = router
        self.use_previous_totals = use_previous_totals and self.needs.totals_from == "scores"
        self._totals: Totals | None = None
        self._previous: Totals | None = None
        self._parts: list[Totals] = []
        self._rows = torch.tensor(1.0, dtype=torch.float64)
        self._head = LazyHead()

    def begin(self, model: nn.Module, batches: Sequence[Mapping[str, Any]], number: int = 0) -> Tensor:
        """Counts the step's rows over all ranks, and makes the totals that its own forwards come too late for.

        Totals from masks or mismatched completions never need a gradient, so they are always made here. Totals from
        the scores themselves come out of the step's single forward; where the step is cut into several
        micro-batches, out of a pass without gradient (or of the previous step, if so chosen).

        Args:
            number: of the optimiser step, which answers that are drawn in it depend on.
        """
        if self.online is not None:
            self.online.step = number
        self._parts, self._totals = [], None
        rows = torch.full((), float(sum(batch["real"].sum() for batch in batches)), dtype=torch.float64)
        self._rows = rows if self.ranks == 1 else self.over_ranks(rows.to(self.device))
        if self.needs.coupled == "step":
            if self.use_previous_totals and self._previous is not None:
                self._totals = self._previous
            elif self.needs.totals_from != "scores" or len(batches) > 1:
                self._totals = self.totals(model, batches)
        return self._rows

    def forward(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Batch, LossOutput | None]:
        """Returns this micro-batch's part of the objective, its batch and the loss's output (None if no row counts).

        The part is ``ranks * sum_i w_i * loss_i / rows``: every engine averages the ranks' gradients.
        """
        coupled, late = self.needs.coupled, self.needs.coupled == "step" and self._totals is None
        own = coupled == "micro_batch" or late or self.use_previous_totals
        inputs = self.drawn(model, inputs)
        with self.router.watching() if self.router else nullcontext():
            batch = self.scored(model, inputs, mismatched=self.needs.mismatched and own)
        totals = self._totals
        if own:
            self._parts.append(self.loss.totals(batch))
            if coupled == "micro_batch":
                totals = self._parts[-1]
            elif late:
                totals = self._totals = self._summed(self._parts)
        balance = self._balance(inputs) if self.router else None
        if len(batch) == 0:  # only fillers: the graph is kept, at zero weight, for the engine's collectives
            return any_scores(batch).sum() * 0.0, batch, None
        output = self.loss(batch, totals)
        if self.online is not None:
            output.metrics["online/finished"] = self.online.finished(model, inputs)
        part = contributions(output, batch).sum() * (self.ranks / self._rows)
        if balance is not None and self.router:
            output.metrics["aux_loss"] = (balance.detach(), torch.full_like(balance.detach(), len(batch)))
            part = part + self.router.coefficient * balance * (self.ranks / self._rows)
        return part.float(), batch, output

    def _balance(self, inputs: Mapping[str, Any]) -> Tensor:
        """Returns this rank's part of the routers' loss of a micro-batch, times its rows on all ranks."""
        assert self.router is not None
        shares, rows = inputs["completions"]["shares"], int(inputs["real"].sum())
        rows_over_ranks = self.over_ranks(torch.full((), float(rows), device=self.device))
        return self.router.loss(shares * bool(rows), self.over_ranks) * rows_over_ranks

    def finish(self, *, last: bool) -> None:
        """Moves the loss's state: after each micro-batch if it couples only that, else after the step's last one."""
        if self.needs.coupled == "micro_batch":
            self.loss.update(self._parts.pop())
        elif self.needs.coupled == "step" and last:
            totals = self._summed(self._parts) if self.use_previous_totals else self._totals
            assert totals is not None
            self.loss.update(totals)
            self._previous = totals

    def drawn(self, model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a micro-batch with answers that the policy has drawn just now, for losses that need them, once."""
        if self.online is None or "answers" in inputs:
            return inputs
        return self.online.extended(model, inputs, training=self.loss.training)

    def scored(self, model: nn.Module, inputs: Mapping[str, Any], *, mismatched: bool = False) -> Batch:
        """Runs frozen models and policy on a micro-batch and returns what the loss is given."""
        inputs = self.drawn(model, inputs)
        frozen, reference = self._frozen_scores(inputs, mismatched=mismatched)
        other = self._mismatched(model, inputs) if mismatched else None
        with self.autocast():
            if self.needs.values:
                policy = {"values": scoring.values(model, inputs["completions"])}
                return loss_batch(inputs, self.needs, policy, frozen, other)
            policy = scoring.score(
                model,
                inputs["completions"],
                head=self._head.of(model),
                reference=reference,
                second_moment=self.needs.second_moment,
            )
        return loss_batch(inputs, self.needs, policy, frozen, other)

    def quiet(self, model: nn.Module, inputs: Mapping[str, Any]) -> Quiet:
        """Returns a micro-batch's scores under the policy in evaluation mode, and what rounding does to them."""

        def score(one: nn.Module) -> Tensor:
            return scoring.score(one, inputs["completions"], head=self._head.of(one))["logps"]

        with uncompiled(), self.autocast():  # once a run: not worth graphs of its own
            return quiet_scores(score, model, inputs)

    def totals(self, model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> Totals:
        """Returns the loss's totals over micro-batches and ranks, from forwards without gradient."""
        with torch.no_grad():
            moved = (send_to_device(batch, self.device, non_blocking=True) for batch in batches)
            return self._summed([self._micro_totals(model, batch) for batch in moved])

    def _micro_totals(self, model: nn.Module, inputs: Mapping[str, Any]) -> Totals:
        """Returns the totals of one micro-batch, from as little of it as they are made of."""
        if self.needs.totals_from == "scores":
            return self.loss.totals(self.scored(model, inputs, mismatched=self.needs.mismatched))
        unscored = {"logps": torch.zeros(inputs["completions"]["mask"].shape, device=self.device)}
        other, frozen = None, FrozenScores(mismatched=dict(inputs.get("mismatched_scores", {})))
        if self.needs.totals_from == "mismatched":
            frozen.mismatched |= self._live(inputs["mismatched"])
            other = self._mismatched(model, inputs)
        return self.loss.totals(loss_batch(inputs, self.needs, unscored, frozen, other))

    def _mismatched(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.no_grad(), self.autocast():
            return scoring.score(model, inputs["mismatched"], head=self._head.of(model))

    def _live(self, layout: Mapping[str, Any]) -> dict[str, Tensor]:
        live = {name: one for name, one in self.frozen.items() if not one.cached}
        return {name: one.live_logps(layout, self.autocast) for name, one in live.items()}

    def _frozen_scores(
        self, inputs: Mapping[str, Any], *, mismatched: bool
    ) -> tuple[FrozenScores, scoring.Distributions | None]:
        """Returns what the frozen models say, and the live reference's distributions where the loss needs the KL."""
        scores = FrozenScores(dict(inputs["scores"]), dict(inputs.get("mismatched_scores", {})))
        layout, reference = inputs["completions"], None
        if self.needs.kl and self.frozen[REFERENCE].cached:
            reference = scoring.Distributions(hidden=inputs["reference_hidden"], head=self.frozen[REFERENCE].head)
        elif self.needs.kl:
            reference = self.frozen[REFERENCE].live(layout, self.autocast)
            scores.completions[REFERENCE] = scoring.place(reference.logps(layout["target"]), layout)
        else:
            scores.completions |= self._live(layout)
        if mismatched:
            scores.mismatched |= self._live(inputs["mismatched"])
        return scores, reference

    def _summed(self, parts: Sequence[Totals]) -> Totals:
        """Returns totals summed over micro-batches and ranks."""
        return {name: self.over_ranks(torch.stack([part[name] for part in parts]).sum(0)) for name in parts[0]}
