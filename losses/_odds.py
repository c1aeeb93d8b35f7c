"""Odds of a completion, computed so that neither value nor gradient is NaN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CERTAIN = -1e-7  # mean log-probabilities are clamped here: at 0 the odds are infinite


def log1mexp(x: Tensor) -> Tensor:
    """Returns log(1 - exp(x)) for x < 0, exact near 0 and far from it.

    Each branch is given a harmless argument where it is not taken: autograd differentiates both branches of a
    ``where``, and 0 * inf is NaN.
    """
    near = x > -math.log(2.0)
    log_of_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    log1p_of_exp = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, log_of_expm1, log1p_of_exp)


def log_odds(mean_logps: Tensor) -> Tensor:
    """Returns ``log(p / (1 - p))`` of ``log p = mean_logps [N]``, clamped to at most -1e-7."""
    x = mean_logps.clamp(max=CERTAIN)
    return x - log1mexp(x)
