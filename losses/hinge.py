"""The hinge loss of the margin, as in SLiC on log-ratios and RSO."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ._margin import MarginLoss


class Hinge(MarginLoss):
    """Hinge loss: pushes the margin up to 1 and no further.

    Formula: ``max(0, 1 - z)``, z = beta * (a - b).

    The reciprocal of beta is the margin of log-ratios that is asked for; RSO takes beta 0.05.

    Args:
        beta: > 0.

    Source: Liu et al. 2023 (RSO), arXiv:2309.06657.
    Elsewhere: TRL ``hinge``; LLaMA-Factory ``hinge``.
    """

    aliases: ClassVar = {"rso": {"beta": 0.05}, "hinge_norm": {}}

    def of_margin(self, z: Tensor) -> Tensor:
        return torch.relu(1 - z)
