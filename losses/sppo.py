"""Self-play preference optimisation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Pairs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._shift import column


class SPPO(Loss):
    """Self-play preference optimisation: draws each log-ratio to its probability of beating the policy.

    Formula: soft ``0.5 [(a - (P_w - 0.5) / beta)^2 + (b - (P_l - 0.5) / beta)^2]``;
    hard ``(a - 0.5 / beta)^2 + (b + 0.5 / beta)^2``.

    P are the columns ``score_chosen`` and ``score_rejected``: the estimated probabilities that each completion beats
    the policy. "hard" takes 1 and 0 instead and leaves out the factor 0.5, as TRL does. At policy == reference the
    hard loss is ``0.5 / beta^2``, 5e5 at the default: expect large values.

    Args:
        beta: 1 / eta of the paper, > 0.
        probabilities: "soft" or "hard".

    Raises:
        ValueError: an option is out of its range, or the columns are missing or no probabilities.

    Source: Wu et al. 2024, arXiv:2405.00675, eq. 4.7.
    Elsewhere: TRL ``sppo_hard``.
    """

    aliases: ClassVar = {"sppo_hard": {"probabilities": "hard"}}

    def __init__(self, beta: float = 1e-3, probabilities: Literal["soft", "hard"] = "soft") -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.probabilities = probabilities
        columns = ("score_chosen", "score_rejected") if probabilities == "soft" else ()
        self.needs = Needs(ref_logps=True, columns=columns)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        if self.probabilities == "hard":
            loss = (a - 0.5 / self.beta) ** 2 + (b + 0.5 / self.beta) ** 2
        else:
            chosen, rejected = (_probability(pairs, name).to(a) for name in ("score_chosen", "score_rejected"))
            loss = 0.5 * ((a - (chosen - 0.5) / self.beta) ** 2 + (b - (rejected - 0.5) / self.beta) ** 2)
        return pair_output(pairs, loss, self.beta)


def _probability(pairs: Pairs, name: str) -> Tensor:
    values = column(pairs, name)
    if not bool(torch.all((values >= 0) & (values <= 1))):
        raise ValueError(f"sppo reads {name} as a probability, found values from {values.min():g} to {values.max():g}")
    return values
