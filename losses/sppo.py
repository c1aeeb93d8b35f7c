"""Self-play preference optimisation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ._base import Batch, Facts, Listed, Loss, LossOutput, Needs, Pairs, Totals, lists_of, pairs_of
from ._checks import check_positive, check_range
from ._lists import mean_where
from ._output import pair_output
from ._scored import where_mask
from ._shift import column


class SPPO(Loss):
    """Self-play preference optimisation: draws each log-ratio to its probability of beating the policy.

    Formula: soft ``0.5 [(a - (P_w - 0.5) / beta)^2 + (b - (P_l - 0.5) / beta)^2]``;
    hard ``(a - 0.5 / beta)^2 + (b + 0.5 / beta)^2``; lists ``mean_i (L_i - R_i - (P_i - 0.5) / beta)^2``.

    P are the columns ``score_chosen`` and ``score_rejected``, or the scores of a list: the estimated probabilities that
    each completion beats the policy. "hard" takes 1 and 0 instead and leaves out the factor 0.5, as TRL does. At policy
    == reference the hard loss is ``0.5 / beta^2``, 5e5 at the default: expect large values.

    Args:
        beta: 1 / eta of the paper, > 0.
        probabilities: "soft" or "hard".
        data: "pairs" or "lists", of which each completion counts by itself, as in the paper.

    Raises:
        ValueError: an option is out of its range, lists are to be hard, or the columns are missing or no probabilities.

    Source: Wu et al. 2024, arXiv:2405.00675, eq. 4.7.
    Elsewhere: TRL ``sppo_hard``; the released code trains on the best and the worst of five.
    """

    aliases: ClassVar = {"sppo_hard": {"probabilities": "hard"}}

    def __init__(
        self,
        beta: float = 1e-3,
        probabilities: Literal["soft", "hard"] = "soft",
        data: Literal["pairs", "lists"] = "pairs",
    ) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.probabilities = probabilities
        if data == "lists" and probabilities == "hard":
            raise ValueError("probabilities: a list has no winner and loser to be 'hard' about; write soft")
        columns = ("score_chosen", "score_rejected") if (data, probabilities) == ("pairs", "soft") else ()
        self.needs = Needs(data=data, ref_logps=True, columns=columns)

    def bind(self, facts: Facts) -> None:
        if self.needs.data == "lists":
            check_range(facts, "scores", 0, 1, "sppo reads them as probabilities; scale them")
        for name in self.needs.columns:
            why = "sppo reads it as a probability; scale it, or write probabilities: hard"
            check_range(facts, name, 0, 1, why)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        if self.needs.data == "lists":
            return self._of_lists(lists_of(batch))
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        if self.probabilities == "hard":
            loss = (a - 0.5 / self.beta) ** 2 + (b + 0.5 / self.beta) ** 2
        else:
            chosen, rejected = (_of_pairs(pairs, name).to(a) for name in ("score_chosen", "score_rejected"))
            loss = 0.5 * ((a - (chosen - 0.5) / self.beta) ** 2 + (b - (rejected - 0.5) / self.beta) ** 2)
        return pair_output(pairs, loss, self.beta)

    def _of_lists(self, lists: Listed) -> LossOutput:
        ratios = lists.completions.log_ratios
        wins = _probabilities(where_mask(lists.scores.detach(), lists.present), "the scores of a list").to(ratios)
        loss = mean_where((ratios - (wins - 0.5) / self.beta) ** 2, lists.present)
        return LossOutput(loss, rewards=self.beta * ratios.detach())


def _of_pairs(pairs: Pairs, name: str) -> Tensor:
    return _probabilities(column(pairs, name), name)


def _probabilities(values: Tensor, name: str) -> Tensor:
    if not bool(torch.all((values >= 0) & (values <= 1))):
        raise ValueError(f"sppo reads {name} as a probability, found values from {values.min():g} to {values.max():g}")
    return values
