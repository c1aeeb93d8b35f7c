"""Aligned supervised fine-tuning."""

from __future__ import annotations

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_non_negative
from ._odds import CERTAIN, log1mexp
from ._output import mean_output
from ._rows import row_metric


class ASFT(Loss):
    """Aligned supervised fine-tuning: likelihood of the chosen completion and absolute odds of both; no reference.

    Formula: ``-(1 + beta) Lbar_w - beta log(1 - exp(Lbar_l))``.

    This is ``-Lbar_w + beta (-log sigmoid(lo_w) - log sigmoid(-lo_l))``, since the sigmoid of log-odds is the
    probability itself; written so, the chosen side has no singularity. The rejected mean is clamped to -1e-7.

    Args:
        beta: the paper's lambda, >= 0.

    Raises:
        ValueError: an option is out of its range.

    Source: Wang et al. 2024, arXiv:2409.10571.
    Elsewhere: turbo-alignment ``asft``; not in TRL.
    Collision: "ASFT" is also anchored supervised fine-tuning, which is LLaMA-Factory's ``use_asft_loss``.
    """

    needs = Needs()

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_non_negative("beta", beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = pairs.chosen.mean_logps, pairs.rejected.mean_logps
        unlikelihood = -log1mexp(rejected.clamp(max=CERTAIN))
        out = mean_output(pairs, -(1 + self.beta) * chosen + self.beta * unlikelihood, self.beta)
        out.metrics = {"nll_loss": row_metric(-chosen, batch)}
        return out
