"""Binary classifier optimisation on pairs, without a reward shift."""

from __future__ import annotations

import math

from ._base import Batch, Loss, LossOutput, Needs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output
from ._scored import log_sigmoid


class BCOPair(Loss):
    """Binary classifier on pairs: chosen rewards above, rejected rewards below a fixed shift.

    Formula: ``-log sigmoid(beta a - delta) - log sigmoid(-(beta b - delta))``.

    TRL 1.16 has no delta; the running mean of the paper is ``bco``, on labelled rows.

    Args:
        beta: > 0.
        delta: the shift, finite.

    Raises:
        ValueError: an option is out of its range.

    Source: Jung et al. 2024, arXiv:2404.04656, with a fixed delta.
    Elsewhere: TRL ``bco_pair``; LLaMA-Factory ``pref_bco_weight`` mixes it in.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 0.1, delta: float = 0.0) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        if not math.isfinite(delta):
            raise ValueError(f"delta must be finite, found {delta!r}")
        self.delta = delta

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        chosen, rejected = self.beta * pairs.chosen.log_ratios, self.beta * pairs.rejected.log_ratios
        loss = -log_sigmoid(chosen - self.delta) - log_sigmoid(self.delta - rejected)
        return pair_output(pairs, loss, self.beta)
