"""Kahneman-Tversky optimisation of single, labelled completions."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from ._base import Batch, Facts, Labelled, Loss, LossOutput, Needs, Totals, labelled_of
from ._checks import check_non_negative, check_positive
from ._rows import row_weights, weighted_total


class KTO(Loss):
    """Kahneman-Tversky optimisation: gains and losses of single completions, measured from the policy's drift.

    Formula: desirable ``lambda_D sigmoid(-beta (r - z0))``, undesirable ``lambda_U sigmoid(-beta (z0 - r))``,
    with r = L - R and ``z0 = max(0, mean of r over the mismatched completions)``, without gradient.

    The mean runs over all mismatched completions of the optimiser step, over all ranks, and is clamped after that
    (TRL takes the mean of the ranks' means, which is the same for equal ranks only). A mismatched completion is a
    column of the data, so a batch of one row works.

    On trajectories of several turns this is M-KTO (Xiong et al. 2024, arXiv:2409.02392): mask tool and user turns, in
    the mismatched completions too.

    Args:
        beta: strength of the pull to the reference, > 0.
        desirable_weight: lambda_D, >= 0.
        undesirable_weight: lambda_U, >= 0. The paper asks for
            ``desirable_weight * desirable rows / (undesirable_weight * undesirable rows)`` in [1, 4/3].

    Raises:
        ValueError: an option is out of its range, or both weights are 0.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    Elsewhere: TRL ``KTOTrainer`` ``kto``; LLaMA-Factory ``stage: kto``.
    """

    aliases: ClassVar = {"m_kto": {}}
    needs = Needs(data="labelled", ref_logps=True, mismatched=True, coupled="step", totals_from="mismatched")

    def __init__(self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.desirable_weight = check_non_negative("desirable_weight", desirable_weight)
        self.undesirable_weight = check_non_negative("undesirable_weight", undesirable_weight)
        if desirable_weight == 0 and undesirable_weight == 0:
            raise ValueError("desirable_weight and undesirable_weight are both 0: nothing would be learned")

    def bind(self, facts: Facts) -> None:
        """Warns where the weighted label balance lies outside of the paper's [1, 4/3]."""
        if not (facts.desirable and facts.undesirable and self.undesirable_weight):
            return
        balance = self.desirable_weight * facts.desirable / (self.undesirable_weight * facts.undesirable)
        if not 1 - 1e-9 <= balance <= 4 / 3 + 1e-9:
            warnings.warn(
                f"{facts.desirable} desirable and {facts.undesirable} undesirable rows, weighted"
                f" {self.desirable_weight:g} to {self.undesirable_weight:g}, have a balance of {balance:.3g}; the paper"
                " asks for 1 to 1.33:"
                f" desirable_weight {self.desirable_weight / balance:.3g} gives 1",
                stacklevel=2,
            )

    def totals(self, batch: Batch) -> Totals:
        mismatched = labelled_of(batch).mismatched
        if mismatched is None:
            raise ValueError("kto needs the mismatched completions of the batch, and none were given")
        log_ratios = mismatched.log_ratios.detach()
        return {
            "kl_sum": weighted_total(log_ratios, batch),
            "kl_count": weighted_total(torch.ones_like(log_ratios), batch),
        }

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        labelled = labelled_of(batch)
        totals = self.totals(batch) if totals is None else totals
        raw = totals["kl_sum"] / totals["kl_count"].clamp(min=1e-30)
        kl = raw.clamp(min=0.0).detach()  # after the reduction over the step, never before
        out = value_loss(labelled, kl, self.beta, self.desirable_weight, self.undesirable_weight)
        counts = row_weights(labelled, out.loss).ne(0).sum()
        out.metrics = {"kl": (kl * counts, counts), "kl_raw": (raw * counts, counts)}
        return out


def value_loss(labelled: Labelled, kl: Tensor, beta: float, desirable: float, undesirable: float) -> LossOutput:
    """Returns KTO's value of each row at the reference point ``kl`` (0-dim, no gradient).

    ``1 - sigmoid(x)`` is computed as ``sigmoid(-x)``: in float32 the former is 0 beyond x = 17.
    """
    log_ratios = labelled.completions.log_ratios
    shifted = beta * (log_ratios - kl)
    gain = desirable * torch.sigmoid(-shifted)
    loss = undesirable * torch.sigmoid(shifted)
    return LossOutput(torch.where(labelled.desirable, gain, loss), rewards=beta * log_ratios.detach())
