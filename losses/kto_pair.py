"""KTO on pairs, as TRL once had it."""

from __future__ import annotations

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._rows import row_weights, weighted_total


class KTOPair(Loss):
    """KTO on pairs: each side is measured from the mean drift of the other side.

    Formula: ``(s(-beta (a - z_l)) + s(beta (b - z_w))) / 2``, z_l = max(0, mean b), z_w = max(0, mean a), without
    gradient, over the optimiser step; s the sigmoid.

    The prompts of the drift are matched, unlike KTO's. Old TRL did not stop the gradient of the means, which about
    doubles the gradient on the chosen side, and averaged over the micro-batch.

    Args:
        beta: > 0.

    Raises:
        ValueError: an option is out of its range.

    Source: after Ethayarajh et al. 2024, arXiv:2402.01306; no paper has this form.
    Elsewhere: TRL 0.7 to 0.9 ``kto_pair``; LLaMA-Factory ``kto_pair``.
    Collision: "KTO" itself is ``kto``, on labelled rows and mismatched completions.
    """

    needs = Needs(ref_logps=True, coupled="step", totals_from="scores")

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def totals(self, batch: Batch) -> Totals:
        pairs = pairs_of(batch)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        return {
            "chosen_sum": weighted_total(a, batch),
            "rejected_sum": weighted_total(b, batch),
            "count": row_weights(batch, a).sum(),
        }

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        totals = self.totals(batch) if totals is None else totals
        count = totals["count"].clamp(min=1e-30)
        kl_chosen = (totals["chosen_sum"] / count).clamp(min=0.0)
        kl_rejected = (totals["rejected_sum"] / count).clamp(min=0.0)
        a, b = pairs.chosen.log_ratios, pairs.rejected.log_ratios
        loss = (torch.sigmoid(-self.beta * (a - kl_rejected)) + torch.sigmoid(self.beta * (b - kl_chosen))) / 2
        rows = row_weights(batch, loss).ne(0).sum()
        metrics = {"kl/chosen": (kl_chosen * rows, rows), "kl/rejected": (kl_rejected * rows, rows)}
        return pair_output(pairs, loss, self.beta, metrics)
