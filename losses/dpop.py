"""DPO-positive."""

from __future__ import annotations

from typing import ClassVar

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative, check_positive
from ._output import pair_output
from ._rows import row_metric
from ._scored import log_sigmoid


class DPOP(Loss):
    """DPO-positive: DPO that also punishes a chosen completion below its reference likelihood.

    Formula: ``-log sigmoid(beta (h - penalty max(0, -a)))``, h = a - b.

    Where a < 0 the gradient on the chosen completion is (1 + penalty) times DPO's. With the published penalty of 50,
    one nat below the reference costs 15 logits: warm up.

    Args:
        beta: > 0.
        penalty: the paper's lambda, >= 0.

    Raises:
        ValueError: an option is out of its range.

    Source: Pal et al. 2024 (Smaug), arXiv:2402.13228.
    Elsewhere: neither in TRL nor in LLaMA-Factory; turbo-alignment ``dpop``.
    """

    needs = Needs(ref_logps=True)
    aliases: ClassVar = {"dpo_positive": {}}

    def __init__(self, beta: float = 0.3, penalty: float = 50.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.penalty = check_non_negative("penalty", penalty)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        loss = -log_sigmoid(self.beta * (a - b - self.penalty * torch.relu(-a)))
        metrics = {"dpop/chosen_below_reference": row_metric((a < 0).to(loss), batch)}
        return pair_output(pairs, loss, self.beta, metrics)
