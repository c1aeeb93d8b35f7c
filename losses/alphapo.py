"""SimPO with a reshaped reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._base import LossOutput, Needs, Pairs
from ._checks import check_non_negative
from ._scored import Scored
from .dpo import DPO

EXPONENT = 80.0  # exp of more than this overflows float32 once it is scaled


class AlphaPO(DPO):
    """AlphaPO: SimPO on a reward whose shape alpha bends.

    Formula: ``-log sigmoid(beta (r_w - r_l) - gamma)``, ``r = (1 - exp(-alpha Lbar)) / alpha``.

    alpha -> 0 is SimPO, and 0 is taken as that limit. The exponent is clamped at 80.

    Args:
        beta: > 0.
        gamma: target margin, >= 0.
        alpha: shape of the reward, any finite number.

    Raises:
        ValueError: an option is out of its range.

    Source: Gupta et al. 2025, arXiv:2501.03884.
    Elsewhere: TRL ``CPOTrainer`` ``alphapo`` (``alpha``).
    """

    needs = Needs()

    def __init__(self, beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> None:
        super().__init__(beta)
        self.gamma = check_non_negative("gamma", gamma)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, found {alpha!r}")
        self.alpha = alpha

    def reward(self, scored: Scored) -> Tensor:
        """Returns ``r [N]``, without beta."""
        if self.alpha == 0:
            return scored.mean_logps
        return -torch.expm1((-self.alpha * scored.mean_logps).clamp(max=EXPONENT)) / self.alpha

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * (self.reward(pairs.chosen) - self.reward(pairs.rejected)) - self.gamma

    def output(self, pairs: Pairs, loss: Tensor) -> LossOutput:
        chosen, rejected = self.reward(pairs.chosen).detach(), self.reward(pairs.rejected).detach()
        return LossOutput(loss, self.beta * chosen, self.beta * rejected)
