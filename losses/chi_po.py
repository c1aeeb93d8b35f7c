"""Chi-squared preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._scored import log_sigmoid

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

    Source: Huang et al. 2024, arXiv:2407.13399.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 0.1, clip: float | None = None) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.clip = None if clip is None else check_positive("clip", clip)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        z = self.beta * ((_exp(a) - _exp(b)) + (a - b))  # exponentials first: they would swallow the log-ratios
        if self.clip is not None:
            z = z.clamp(-self.clip, self.clip)
        chosen, rejected = ((self.beta * (_exp(x) + x)).detach() for x in (a, b))
        return LossOutput(-log_sigmoid(z), chosen, rejected)


def _exp(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp(max=EXPONENT))
