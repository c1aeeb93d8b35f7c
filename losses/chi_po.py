"""Chi-squared preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, check_positive, log_sigmoid, pairs_of

EXPONENT = 80.0  # exp of more than this overflows float32 once it is scaled


class ChiPO(Loss):
    """Chi-squared preference optimisation: DPO under a mix of chi-squared and KL regularisation.

    Formula: ``-log sigmoid(clip(beta [(exp(a) + a) - (exp(b) + b)]))``, clip to [-clip, clip].

    Outside of the clip there is no gradient. At policy == reference the gradient is twice DPO's. The log-ratios are
    clamped at 80 inside exp.

    Args:
        beta: > 0.
        clip: 2 R_max of the paper, > 0, or null for none.

    Raises:
        ValueError: an option is out of its range.

    Source: Huang et al. 2024, arXiv:2407.13399, algorithm 1.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 0.1, clip: float | None = None) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.clip = None if clip is None else check_positive("clip", clip)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = (self.beta * _phi(side.log_ratios) for side in (pairs.chosen, pairs.rejected))
        z = chosen - rejected
        if self.clip is not None:
            z = z.clamp(-self.clip, self.clip)
        return LossOutput(-log_sigmoid(z), chosen.detach(), rejected.detach())


def _phi(log_ratio: Tensor) -> Tensor:
    """Returns ``u + log u`` of ``log u``."""
    return torch.exp(log_ratio.clamp(max=EXPONENT)) + log_ratio
