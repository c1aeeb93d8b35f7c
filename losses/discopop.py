"""The loss that a language model discovered."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_interval
from ._margin import MarginLoss
from ._scored import log_sigmoid


class DiscoPOP(MarginLoss):
    """DiscoPOP: a blend of the logistic and the exponential loss, mixed by the margin itself.

    Formula: ``(1 - m) (-log sigmoid(z)) + m exp(-z)``, m = sigmoid(z / tau), z = beta * (a - b).

    Not convex. ``m exp(-z)`` is computed as ``exp(log sigmoid(z / tau) - z)``: the product is inf * 0 below z = -88.7.

    Args:
        beta: > 0.
        tau: temperature of the mixture, in (0, 1].

    Raises:
        ValueError: an option is out of its range.

    Source: Lu et al. 2024, arXiv:2406.08414, eq. 5.
    Elsewhere: TRL ``discopop`` (``discopop_tau``).
    """

    def __init__(self, beta: float = 0.05, tau: float = 0.05) -> None:
        super().__init__(beta)
        if tau == 0:
            raise ValueError("tau must be > 0, found 0")
        self.tau = check_interval("tau", tau, 0.0, 1.0, closed=True)

    def of_margin(self, z: Tensor) -> Tensor:
        logistic = torch.sigmoid(-z / self.tau) * -log_sigmoid(z)
        return logistic + torch.exp(log_sigmoid(z / self.tau) - z)
