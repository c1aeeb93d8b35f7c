"""Length-desensitised direct preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_interval, check_positive
from ._scored import Scored, log_sigmoid, where_mask


class LDDPO(Loss):
    """LD-DPO: DPO that counts the tokens past the shorter completion's length for less.

    Formula: ``-log sigmoid(beta (a' - b'))``, where the log-ratios weigh their first min(n_w, n_l) tokens 1 and the
    rest alpha.

    alpha 1 is DPO, 0 drops the tail. Positions are counted on the mask, so tokens that do not count shift nothing. The
    rewards reported are the weighted ones.

    Args:
        beta: > 0.
        alpha: weight of the tail, in [0, 1].

    Raises:
        ValueError: an option is out of its range.

    Source: Liu et al. 2024, arXiv:2409.06411.
    Elsewhere: TRL ``ld_alpha``; LLaMA-Factory ``ld_alpha``.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.alpha = check_interval("alpha", alpha, 0.0, 1.0, closed=True)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        shorter = torch.minimum(pairs.chosen.mask.sum(-1), pairs.rejected.mask.sum(-1))
        chosen, rejected = (self.beta * self._log_ratios(side, shorter) for side in (pairs.chosen, pairs.rejected))
        return LossOutput(-log_sigmoid(chosen - rejected), chosen.detach(), rejected.detach())

    def _log_ratios(self, scored: Scored, shorter: Tensor) -> Tensor:
        policy = where_mask(scored.logps, scored.mask)
        ratios = policy - where_mask(scored.require("ref_logps").detach(), scored.mask)
        head = scored.mask.cumsum(-1) <= shorter[:, None]  # [N, T]
        return torch.where(head, ratios, self.alpha * ratios).sum(-1)
