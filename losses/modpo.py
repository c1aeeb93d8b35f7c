"""Multi-objective direct preference optimisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._base import Batch, Facts, Loss, LossOutput, Needs, Totals, bind, pairs_of
from ._checks import check_non_negative
from ._margin import margin_base
from ._rows import row_metric
from ._scored import Scored, where_mask
from .dpo import DPO


class MODPO(Loss):
    """Multi-objective DPO: preferences of one objective, margins of frozen rewards for the others.

    Formula: ``-log sigmoid((1 / w_1) (beta h - sum_{j >= 2} w_j (r_j(w) - r_j(l))))``, h = a - b; of any base,
    its loss of that.

    The other rewards are explicit (columns of the rows) or implicit, ``r_j = beta (log pi_j - log pi_ref)`` of a
    frozen scorer, with the same beta. What is equal for both completions of a prompt cancels; with margins of 0
    this is DPO with beta / w_1. The rewards reported are the whole brackets,
    ``(1 / w_1) (r - sum_j w_j r_j)``, r the base's reward, of DPO ``beta * log-ratio``, as in the official code.

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        weights: K numbers >= 0 that sum to 1: of the preferences first (> 0), then of the explicit rewards in the
            order of their columns, then of ``scorers`` in their order.
        scorers: names of the frozen models whose implicit rewards are objectives.
        base: any loss of the margin; its beta is that of the implicit rewards.

    Raises:
        ValueError: the weights are not as above, or the rows carry another number of rewards.

    Source: Zhou et al. 2023, arXiv:2310.03708.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    def __init__(
        self,
        beta: float | None = None,
        weights: Sequence[float] = (0.5, 0.5),
        scorers: Sequence[str] = (),
        base: Loss | None = None,
    ) -> None:
        super().__init__()
        self.base = margin_base(base, beta, DPO)
        self.beta = self.base.beta
        self.weights = tuple(check_non_negative(f"weights[{j}]", weight) for j, weight in enumerate(weights))
        if len(weights) < 1 + len(scorers) or abs(sum(weights) - 1) > 1e-6 or weights[0] == 0:
            raise ValueError(
                "weights must hold one number for the preferences (> 0), one for each explicit reward and one for each"
                f" scorer, and sum to 1; found {list(weights)} with {len(scorers)} scorers"
            )
        explicit = len(weights) - 1 - len(scorers)
        self.needs = Needs(ref_logps=True, rewards=explicit, scorers=tuple(scorers))
        self.objectives = tuple(f"reward_{j}" for j in range(1, explicit + 1)) + tuple(scorers)

    def bind(self, facts: Facts) -> None:
        """Takes the names of the explicit rewards for the metrics; raises ValueError if their number is wrong."""
        bind("base", self.base, facts)
        if len(facts.objectives) != self.needs.rewards:
            raise ValueError(
                f"weights {list(self.weights)} with {len(self.needs.scorers)} scorers leave {self.needs.rewards}"
                f" explicit rewards, but the rows carry {len(facts.objectives)}: {list(facts.objectives)}"
            )
        self.objectives = tuple(facts.objectives) + self.needs.scorers

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = self._other_rewards(pairs.chosen), self._other_rewards(pairs.rejected)
        weights = torch.tensor(self.weights[1:], dtype=chosen.dtype, device=chosen.device)
        others = (chosen - rejected) @ weights
        loss = self.base.of_margin((self.base.margin(pairs) - others) / self.weights[0])
        own = self.base.output(pairs, loss)
        assert own.chosen_rewards is not None
        assert own.rejected_rewards is not None
        bracket_chosen, bracket_rejected = (
            own.chosen_rewards - chosen @ weights,
            own.rejected_rewards - rejected @ weights,
        )
        metrics = {"modpo/bracket": row_metric(bracket_chosen - bracket_rejected, batch)}
        for name, margin in zip(self.objectives, (chosen - rejected).unbind(-1), strict=True):
            metrics[f"objective/{name}/margins"] = row_metric(margin, batch)
            metrics[f"objective/{name}/agreement"] = row_metric((margin > 0).to(loss), batch)
        return LossOutput(loss, bracket_chosen / self.weights[0], bracket_rejected / self.weights[0], None, metrics)

    def _other_rewards(self, scored: Scored) -> Tensor:
        """Returns the rewards of the other objectives, ``[N, K - 1]``, detached: explicit ones, then implicit ones."""
        reference = scored.sum_ref_logps
        columns = []
        if self.needs.rewards:
            columns.append(scored.require("rewards").detach().to(reference))
        for name in self.needs.scorers:
            if name not in scored.scorers:
                raise ValueError(f"modpo needs the scores of {name!r}; given are {sorted(scored.scorers)}")
            log_ratios = where_mask(scored.scorers[name].detach(), scored.mask).sum(-1) - reference
            columns.append(self.beta * log_ratios.unsqueeze(-1))
        return torch.cat(columns, dim=-1) if columns else reference.new_zeros(len(reference), 0)
