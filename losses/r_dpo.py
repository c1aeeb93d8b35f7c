"""Length-regularised direct preference optimisation."""

from __future__ import annotations

from torch import Tensor

from ._base import Loss, Pairs
from ._checks import check_non_negative
from ._shift import ShiftedLoss


class RDPO(ShiftedLoss):
    """R-DPO: DPO that discounts a preference for the longer completion.

    Formula: ``-log sigmoid(z + alpha (n_w - n_l))``, z = beta * (a - b), n the number of tokens; of any base, its loss
    of that.

    From the reward less alpha per token; alpha stands outside of beta, and lengths count completion tokens only (one
    public implementation has the opposite sign, inside beta, on padded widths).

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        alpha: price of a token, >= 0.
        base: any loss of the margin.

    Raises:
        ValueError: an option is out of its range.

    Source: Park et al. 2024, arXiv:2403.19159.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    def __init__(self, beta: float | None = None, alpha: float = 0.01, base: Loss | None = None) -> None:
        super().__init__(beta, base)
        self.alpha = check_non_negative("alpha", alpha)

    def shift(self, pairs: Pairs) -> Tensor:
        return -self.alpha * (pairs.chosen.lengths - pairs.rejected.lengths)
