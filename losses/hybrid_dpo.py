"""Hybrid direct preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Pairs
from .dpo import DPO


class HybridDPO(DPO):
    """Hybrid DPO: drops the reference's margin where the reference ranks the pair wrongly.

    Formula: ``-log sigmoid(beta ((L_w - L_l) - max(0, R_w - R_l)))``.

    Equals DPO on pairs that the reference ranks correctly. The rewards reported are DPO's.

    Args:
        beta: > 0.

    Source: Yuan et al. 2026, arXiv:2602.11902.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    Collision: its paper calls it HyPO, as does Song et al. 2024 another method (DPO plus a KL term on fresh samples).
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def margin(self, pairs: Pairs) -> Tensor:
        reference = torch.relu(pairs.chosen.sum_ref_logps - pairs.rejected.sum_ref_logps)
        return self.beta * (pairs.chosen.sum_logps - pairs.rejected.sum_logps - reference)
