"""Direct preference optimisation under other divergences than the reverse KL."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ._base import Batch, Facts, Loss, LossOutput, Needs, Totals, bind, pairs_of
from ._margin import MarginLoss, margin_base
from ._scored import log_sigmoid
from .dpo import DPO

EXPONENT = 80.0  # exp of more than this overflows float32 once it is scaled


class FDPO(Loss):
    """f-DPO: DPO whose rewards come from another f-divergence to the reference.

    Formula: ``-log sigmoid(beta (f(a) - f(b)))`` with, of a log-ratio x: reverse_kl ``x``; forward_kl
    ``1 - exp(-x)``; js ``log 2 + log sigmoid(x)``; alpha ``(exp((alpha - 1) x) - 1) / (alpha - 1)``; of any base, its
    loss of the bracket.

    alpha 1 is DPO and 0 the forward KL, as in TRL today; TRL up to 0.28 counted the other way round, 1 - alpha.
    Exponents are clamped at 80. The normaliser cancels in the difference of two completions only, so no divergence
    combines with KTO, BCO, NCA, APO, SPPO or AOT.

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        divergence: which.
        alpha: of the alpha divergence, finite.
        base: any loss of the margin ``beta (a - b)``.

    Raises:
        ValueError: an option is out of its range, or the base is no function of that margin alone.

    Source: Wang et al. 2023, arXiv:2309.16240.
    Elsewhere: TRL ``f_divergence_type`` (``f_alpha_divergence_coef`` is alpha).
    """

    needs = Needs(ref_logps=True)

    def __init__(
        self,
        beta: float | None = None,
        divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "forward_kl",
        alpha: float = 0.5,
        base: Loss | None = None,
    ) -> None:
        super().__init__()
        self.base = margin_base(base, beta, DPO, "the normaliser of an f-divergence does not cancel in it")
        if type(self.base).margin is not MarginLoss.margin:
            raise ValueError(f"base: {type(self.base).__name__} has a margin of its own, not beta (a - b)")
        self.beta = self.base.beta
        self.divergence = divergence
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, found {alpha!r}")
        self.alpha = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(divergence, alpha)

    def bind(self, facts: Facts) -> None:
        bind("base", self.base, facts)

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
        return LossOutput(self.base.of_margin(chosen - rejected), chosen.detach(), rejected.detach())
