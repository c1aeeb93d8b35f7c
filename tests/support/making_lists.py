"""Lists of completions that have the log-ratios that a test asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.losses import Listed, Scored


def lists_of_sums(log_ratios: Tensor, scores: Sequence[Sequence[float]], tokens: Sequence[int] | None = None) -> Listed:
    """Returns lists whose completions have these log-ratios ``[N, K]``, all of it in the first token.

    Args:
        scores: one number a completion, higher is better; NaN makes a hole.
        tokens: how many tokens the completions of each place have, 2 where it is not given; the reference gives each
            token the log-probability -1.
    """
    lengths = torch.tensor(tokens or [2] * log_ratios.shape[1])
    values = torch.tensor(scores, dtype=log_ratios.dtype)
    width = int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]) & ~values.isnan()[..., None]
    reference = torch.full(mask.shape, -1.0, dtype=log_ratios.dtype)
    first = torch.arange(width) == 0
    logps = reference + torch.where(first, log_ratios.detach()[..., None], torch.zeros((), dtype=log_ratios.dtype))
    return Listed(Scored(logps.requires_grad_(), mask, reference), values)
