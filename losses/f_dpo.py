"""Direct preference optimisation under other divergences than the reverse KL."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, check_positive, log_sigmoid, pairs_of

EXPONENT = 80.0  # exp of more than this overflows float32 once it is scaled


class FDPO(Loss):
    """f-DPO: DPO whose rewards come from another f-divergence to the reference.

    Formula: ``-log sigmoid(beta (f(a) - f(b)))`` with, of a log-ratio x: reverse_kl ``x``; forward_kl
    ``1 - exp(-x)``; js ``log 2 + log sigmoid(x)``; alpha ``(exp((alpha - 1) x) - 1) / (alpha - 1)``.

    alpha 1 is DPO and 0 the forward KL, as in TRL today; TRL up to 0.28 counted the other way round, 1 - alpha.
    Exponents are clamped at 80. The normaliser cancels in differences only, so no divergence combines with KTO, BCO,
    NCA, APO, SPPO or AOT.

    Args:
        beta: > 0.
        divergence: which.
        alpha: of the alpha divergence, finite.

    Raises:
        ValueError: an option is out of its range.

    Source: Wang et al. 2023, arXiv:2309.16240.
    Elsewhere: TRL ``f_divergence_type`` (``f_alpha_divergence_coef`` is alpha).
    """

    needs = Needs(ref_logps=True)

    def __init__(
        self,
        beta: float = 0.1,
        divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "forward_kl",
        alpha: float = 0.5,
    ) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.divergence = divergence
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, found {alpha!r}")
        self.alpha = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(divergence, alpha)

    def score(self, log_ratio: Tensor) -> Tensor:
        """Returns ``f(x) [N]``, without beta."""
        if self.divergence == "js":
            return math.log(2.0) + log_sigmoid(log_ratio)
        if self.alpha == 1:
            return log_ratio
        power = self.alpha - 1
        return torch.expm1((power * log_ratio).clamp(max=EXPONENT)) / power

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = (self.beta * self.score(side.log_ratios) for side in (pairs.chosen, pairs.rejected))
        return LossOutput(-log_sigmoid(chosen - rejected), chosen.detach(), rejected.detach())
