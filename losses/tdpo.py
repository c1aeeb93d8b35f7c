"""Token-level direct preference optimisation."""

from __future__ import annotations

from typing import ClassVar, Literal

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative, check_positive
from ._rows import row_metric
from ._scored import log_sigmoid


class TDPO(Loss):
    """Token-level DPO: the margin less the difference of sequential KL divergences from the reference.

    Formula: 1: ``-log sigmoid(beta (h - (K_l - K_w)))``; 2: ``-log sigmoid(beta (h - alpha (K_l - sg(K_w))))``,
    h = a - b, K = sum over positions of KL(reference || policy) over the whole vocabulary, sg without gradient.

    Variant 2 with alpha 0 is DPO; with alpha 1 it has the value of variant 1 but not its gradient. The rewards
    reported are ``beta (log-ratio + K)``. The official configuration trains variant 1 unless ``if_tdpo2`` is set.

    Args:
        beta: strength of the pull to the reference, > 0.
        alpha: weight of the KL difference in variant 2, >= 0; variant 1 has none.
        variant: 1 or 2.

    Raises:
        ValueError: an option is out of its range.

    Source: Zeng et al. 2024, arXiv:2404.11999.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    needs = Needs(ref_logps=True, kl=True)
    aliases: ClassVar = {"tdpo1": {"variant": 1}, "tdpo2": {"variant": 2}}

    def __init__(self, beta: float = 0.1, alpha: float = 0.5, variant: Literal[1, 2] = 2) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.alpha = check_non_negative("alpha", alpha)
        self.variant = variant
        self.stops_gradient = ("kl",) if variant == 2 else ()

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.variant == 1:
            shift = rejected.sum_kl - chosen.sum_kl
        else:
            shift = self.alpha * (rejected.sum_kl - chosen.sum_kl.detach())
        loss = -log_sigmoid(self.beta * (chosen.log_ratios - rejected.log_ratios - shift))
        kl_chosen, kl_rejected = chosen.sum_kl.detach(), rejected.sum_kl.detach()
        return LossOutput(
            loss,
            chosen_rewards=self.beta * (chosen.log_ratios.detach() + kl_chosen),
            rejected_rewards=self.beta * (rejected.log_ratios.detach() + kl_rejected),
            metrics={
                "position_kl/chosen": row_metric(kl_chosen, batch),
                "position_kl/rejected": row_metric(kl_rejected, batch),
                "position_kl/margins": row_metric(kl_chosen - kl_rejected, batch),
            },
        )
