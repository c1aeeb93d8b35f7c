"""Direct preference optimisation with a dynamic beta."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_interval, check_non_negative, check_positive
from ._output import pair_output
from ._rows import row_weights, weighted_total
from ._scored import log_sigmoid

LOWEST_BETA = 1e-3


class BetaDPO(Loss):
    """beta-DPO: DPO whose beta follows how far the margins of the step lie from their running mean.

    Formula: ``-log sigmoid(beta_b h)``, ``beta_b = max(1e-3, beta (1 + alpha (mean h - M)))`` without gradient;
    ``M <- momentum M + (1 - momentum) mean h`` and sigma likewise by the standard deviation, from 0, moved before use.

    Statistics are over the optimiser step, from all ranks. In evaluation beta is beta_0, so that values compare. With
    alpha 0 and no filter this is DPO.

    ``filter_ratio`` above 0 also drops that share of the rows of each micro-batch at random, keeping row i with
    likelihood ``exp(-(h_i - M)^2 / (2 sigma^2))``; beta_b then follows the kept rows. Which rows are kept depends on
    the others at hand, so the loss then couples the micro-batch of one rank only, statistics included, as in the
    official code on one device. The paper filters 0.2.

    Args:
        beta: beta_0, > 0.
        alpha: >= 0.
        momentum: in [0, 1).
        filter_ratio: rho, in [0, 1).

    Raises:
        ValueError: an option is out of its range.

    Source: Wu et al. 2024, arXiv:2407.08639.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    gap_mean: Tensor
    gap_std: Tensor
    updates: Tensor

    def __init__(self, beta: float = 0.1, alpha: float = 0.6, momentum: float = 0.9, filter_ratio: float = 0.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.alpha = check_non_negative("alpha", alpha)
        self.momentum = check_interval("momentum", momentum, 0.0, 1.0)
        self.filter_ratio = check_interval("filter_ratio", filter_ratio, 0.0, 1.0)
        self.needs = Needs(
            ref_logps=True,
            coupled="micro_batch" if filter_ratio else "step",
            totals_from="scores",
            totals_in_evaluation=False,
        )
        self.stops_gradient = ("logps",) if filter_ratio else ()
        self.register_buffer("gap_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("gap_std", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def totals(self, batch: Batch) -> Totals:
        pairs = pairs_of(batch)
        gap = (pairs.chosen.log_ratios - pairs.rejected.log_ratios).detach().double()
        return {
            "count": row_weights(batch, gap).sum(),
            "gap_sum": weighted_total(gap, batch),
            "gap_square_sum": weighted_total(gap**2, batch),
        }

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        gap = pairs.chosen.log_ratios - pairs.rejected.log_ratios
        keep, scale = row_weights(batch, gap) != 0, 1.0
        gap_mean, gap_std, beta = self.gap_mean, self.gap_std, torch.tensor(self.beta, dtype=torch.float64)
        if self.training:
            totals = self.totals(batch) if totals is None else totals
            kept_mean, (gap_mean, gap_std) = _mean(totals), self._moved(totals)
            if self.filter_ratio and keep.any():
                rows = keep.nonzero()[:, 0]
                count, gaps = max(1, int((1 - self.filter_ratio) * len(rows))), gap[rows].detach()
                chosen = rows[self.select(log_keep_weights(gaps, gap_mean, gap_std), gaps, count)]
                keep = torch.zeros_like(keep).index_fill(0, chosen, True)
                kept_mean, scale = gap[chosen].detach().double().mean(), len(rows) / count
            beta = (self.beta * (1 + self.alpha * (kept_mean - gap_mean.to(kept_mean)))).clamp(min=LOWEST_BETA)
        loss = torch.where(keep, -log_sigmoid(beta.to(gap) * gap), 0.0) * scale
        one = torch.ones((), device=gap.device)
        metrics = {
            "beta_dpo/beta": (beta.to(gap), one),
            "beta_dpo/gap_mean": (gap_mean.to(gap), one),
            "beta_dpo/gap_std": (gap_std.to(gap), one),
        }
        return pair_output(pairs, loss, self.beta, metrics)

    def select(self, log_weights: Tensor, gap: Tensor, count: int) -> Tensor:
        """Returns the indices of ``count`` rows, drawn without replacement with likelihoods ``exp(log_weights [N])``.

        The draw depends on the number of updates so far and on the gaps, not on the order of the rows.
        """
        generator = torch.Generator().manual_seed(int(self.updates))
        uniform = torch.rand(len(gap), generator=generator, dtype=torch.float64).to(gap.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
        noise = torch.empty_like(gumbel).index_put((gap.argsort(),), gumbel)
        return (log_weights + noise).topk(count).indices

    def update(self, totals: Totals) -> None:
        self.gap_mean, self.gap_std = self._moved(totals)
        self.updates = self.updates + 1

    def _moved(self, totals: Totals) -> tuple[Tensor, Tensor]:
        count, mean = totals["count"], _mean(totals)
        spread = (totals["gap_square_sum"] - count * mean**2).clamp(min=0.0)
        std = torch.where(count > 1, spread / (count - 1).clamp(min=1e-30), 0.0).sqrt()  # of one row: 0, not NaN
        rate = 1 - self.momentum
        return (
            self.momentum * self.gap_mean + rate * mean.to(self.gap_mean),
            self.momentum * self.gap_std + rate * std.to(self.gap_std),
        )


def log_keep_weights(gap: Tensor, gap_mean: Tensor, gap_std: Tensor) -> Tensor:
    """Returns ``-(gap - M)^2 / (2 sigma^2)``, ``[N]`` float64: as weights they underflow while sigma is still small."""
    gap = gap.double()
    return -((gap - gap_mean.to(gap)) ** 2) / (2 * gap_std.to(gap).clamp(min=1e-12) ** 2)


def _mean(totals: Totals) -> Tensor:
    return totals["gap_sum"] / totals["count"].clamp(min=1e-30)
