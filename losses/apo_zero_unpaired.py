"""Anchored preference optimisation of single, labelled completions."""

from __future__ import annotations

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, labelled_of
from ._checks import check_non_negative, check_positive
from .kto import value_loss


class APOZeroUnpaired(Loss):
    """APO-zero on labelled rows: KTO with its reference point at zero, so rows are independent.

    Formula: desirable ``lambda_D s(-beta r)``, undesirable ``lambda_U s(beta r)``, r = L - R, s the sigmoid.

    Args:
        beta: > 0.
        desirable_weight: lambda_D, >= 0.
        undesirable_weight: lambda_U, >= 0.

    Raises:
        ValueError: an option is out of its range.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, as TRL carries it over to labelled rows.
    Elsewhere: TRL ``KTOTrainer`` ``apo_zero_unpaired``.
    """

    needs = Needs(data="labelled", ref_logps=True)

    def __init__(self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.desirable_weight = check_non_negative("desirable_weight", desirable_weight)
        self.undesirable_weight = check_non_negative("undesirable_weight", undesirable_weight)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        labelled = labelled_of(batch)
        zero = torch.zeros((), device=labelled.desirable.device)
        return value_loss(labelled, zero, self.beta, self.desirable_weight, self.undesirable_weight)
