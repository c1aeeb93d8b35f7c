"""Anchored preference optimisation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output


class APO(Loss):
    """Anchored preference optimisation: says whether the chosen likelihood should rise or fall, not only the margin.

    Formula: zero ``s(-beta a) + s(beta b)``; down ``s(beta a) + s(-beta (a - b))``, s the sigmoid.

    "zero" raises chosen and lowers rejected: for chosen completions better than the model. "down" lowers both, rejected
    more: for a model better than its data. On labelled rows: ``apo_zero_unpaired``.

    Args:
        beta: > 0.
        variant: "zero" or "down".

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 and 8.
    Elsewhere: TRL ``apo_zero`` and ``apo_down``.
    """

    needs = Needs(ref_logps=True)
    aliases: ClassVar = {"apo_zero": {"variant": "zero"}, "apo_down": {"variant": "down"}}

    def __init__(self, beta: float = 0.1, variant: Literal["zero", "down"] = "zero") -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.variant = variant

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = self.beta * pairs.chosen.log_ratios, self.beta * pairs.rejected.log_ratios
        if self.variant == "zero":
            loss = torch.sigmoid(-chosen) + torch.sigmoid(rejected)
        else:
            loss = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
        return pair_output(pairs, loss, self.beta)
