"""Length-normalised direct preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ._base import LossOutput, Pairs
from .dpo import DPO


class SigmoidNorm(DPO):
    """Length-normalised DPO: the DPO loss on log-ratios per token.

    Formula: ``-log sigmoid(beta (a / n_w - b / n_l))``.

    With a uniform reference this is SimPO without a gamma. The rewards reported are per token too.

    Args:
        beta: > 0; larger than for sums, since log-ratios per token are small.

    Source: Lambert et al. 2024 (Tulu 3), arXiv:2411.15124.
    Elsewhere: TRL ``sigmoid_norm``; open-instruct ``dpo_norm``.
    """

    aliases: ClassVar = {"dpo_norm": {}}

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__(beta)

    def margin(self, pairs: Pairs) -> Tensor:
        chosen, rejected = pairs.chosen, pairs.rejected
        return self.beta * (chosen.log_ratios / chosen.lengths - rejected.log_ratios / rejected.lengths)

    def output(self, pairs: Pairs, loss: Tensor) -> LossOutput:
        chosen, rejected = ((side.log_ratios / side.lengths).detach() for side in (pairs.chosen, pairs.rejected))
        return LossOutput(loss, self.beta * chosen, self.beta * rejected)
