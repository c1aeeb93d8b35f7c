"""Formulas of methods that reach beyond the scores of a batch; no trainer here runs them yet."""

from __future__ import annotations

import torch
from torch import Tensor

from ._scored import where_mask


def ift(logps: Tensor, mask: Tensor, gamma: float = 0.95, detach_weights: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the losses ``[N]`` of intuitive fine-tuning and the weights ``[N, T]`` of its tokens.

    ``mean_t w_t l_t``, l_t = -log pi(gold_t), ``w_t = T c_t / sum c``, ``c_t = sum_{k >= t} gamma^(k - t) l_k``: early
    tokens answer for what follows. The official code lets the gradient flow through the weights. gamma 0 is the plain
    mean, with weights of 1.

    Args:
        logps: ``[N, T]`` of the gold tokens, under inputs mixed with the policy's own predictions.
        mask: ``[N, T]`` bool, True on a prefix of each row.
        gamma: discount, in [0, 1).
        detach_weights: stop the gradient through the weights.

    Source: Hua et al. 2024, arXiv:2405.11870.
    """
    losses, tokens = -where_mask(logps, mask), mask.sum(-1, keepdim=True)
    weights = mask.to(losses)
    if gamma > 0:
        future, columns = torch.zeros_like(losses[:, 0]), []
        for position in reversed(range(losses.shape[1])):
            future = losses[:, position] + gamma * future
            columns.append(future)
        discounted = where_mask(torch.stack(columns[::-1], dim=1), mask)
        weights = tokens * discounted / discounted.sum(-1, keepdim=True)
    weights = weights.detach() if detach_weights else weights
    return (weights * losses).sum(-1) / tokens[:, 0], weights


def vaa_step(p: float, group: int, loss: float, step_size: float = 0.007, low: float = 0.1, high: float = 0.9) -> float:
    """Returns the next probability of sampling group 1 (the vulnerable one) in vulnerability-aware alignment.

    The mass q of the group that was sampled becomes ``q exp(step_size loss / q)``; both are normalised, and p is
    clipped to [low, high].

    Args:
        p: the probability of group 1.
        group: 0 or 1, the group that was sampled.
        loss: its loss.
        step_size: eta, >= 0.
        low: lower bound of p.
        high: upper bound of p.

    Source: Chen et al. 2025, arXiv:2506.03850.
    """
    masses = torch.tensor([1 - p, p], dtype=torch.float64)
    logs = masses.log()
    logs[group] += step_size * loss / masses[group]
    return float(torch.softmax(logs, 0)[1].clamp(low, high))
