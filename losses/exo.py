"""Efficient exact optimisation on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ._margin import MarginLoss
from ._scored import log_sigmoid


class EXO(MarginLoss):
    """Efficient exact optimisation: the reverse KL from the smoothed label to the policy's preference.

    Formula: ``s(z) (log s(z) - log(1 - e)) + s(-z) (log s(-z) - log e)``, s the sigmoid, z = beta * (a - b).

    The official code takes label log-weights of 0 and -10 instead, which are not normalised.

    Args:
        beta: > 0.
        epsilon: e, the probability that the label is wrong, in (0, 0.5).

    Raises:
        ValueError: an option is out of its range.

    Source: Ji et al. 2024, arXiv:2402.00856, eq. 16.
    Elsewhere: TRL ``exo_pair`` (its ``label_smoothing`` is epsilon).
    """

    aliases: ClassVar = {"exo_pair": {}}

    def __init__(self, beta: float = 0.1, epsilon: float = 1e-3) -> None:
        super().__init__(beta)
        if not 0 < epsilon < 0.5:
            raise ValueError(f"epsilon must be in (0, 0.5), found {epsilon!r}")
        self.epsilon = epsilon

    def of_margin(self, z: Tensor) -> Tensor:
        right = torch.sigmoid(z) * (log_sigmoid(z) - math.log1p(-self.epsilon))
        wrong = torch.sigmoid(-z) * (log_sigmoid(-z) - math.log(self.epsilon))
        return right + wrong
