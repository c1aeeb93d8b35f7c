"""Identity preference optimisation: a squared distance of the margin to a target."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ._base import Pairs
from ._margin import MarginLoss


class IPO(MarginLoss):
    """Identity preference optimisation: draws the margin of log-ratios to ``1 / (2 beta)`` and no further.

    Formula: ``(h - 1 / (2 beta))^2``; sum: h = a - b, mean: h = a / n_w - b / n_l.

    With summed log-ratios of long completions the gradient is large: clip it, or take the mean.
    Lengths are counts of tokens, so the value at policy == reference is ``1 / (4 beta^2)`` (HALOs divides by the
    number of non-zero log-ratios there, which is NaN).

    Args:
        beta: the paper's tau, > 0.
        normalise: log-ratios per token ("mean", as TRL and HALOs) or of the whole completion ("sum", as the paper).

    Raises:
        ValueError: an option is out of its range.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    Elsewhere: TRL ``ipo`` (mean); LLaMA-Factory ``ipo`` (mean); eric-mitchell ``ipo`` (sum).
    """

    def __init__(self, beta: float = 0.1, normalise: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(beta)
        self.normalise = normalise

    def margin(self, pairs: Pairs) -> Tensor:
        if self.normalise == "sum":
            return super().margin(pairs)
        chosen, rejected = pairs.chosen, pairs.rejected
        return self.beta * (chosen.log_ratios / chosen.lengths - rejected.log_ratios / rejected.lengths)

    def of_margin(self, z: Tensor) -> Tensor:
        return (z / self.beta - 1 / (2 * self.beta)) ** 2
