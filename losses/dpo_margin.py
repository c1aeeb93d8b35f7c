"""Direct preference optimisation with a margin per pair."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ._base import Loss, Pairs
from ._shift import ShiftedLoss, column


class DPOMargin(ShiftedLoss):
    """DPO with a margin: demands more of pairs whose chosen completion is better by more.

    Formula: ``-log sigmoid(z - margin)``, z = beta * (a - b), margin a column of the rows; of any base, its loss of
    ``z - margin``.

    The margin stands outside of beta. A margin of 0 is the base itself.

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        base: any loss of the margin.

    Raises:
        ValueError: the base is no function of the margin, or the rows have no margin.

    Source: Touvron et al. 2023 (Llama 2), arXiv:2307.09288, eq. 2, for the margin.
    Elsewhere: turbo-alignment ``sigmoid_with_margin``; TRL ``RewardTrainer`` has the same column.
    """

    def __init__(self, beta: float | None = None, base: Loss | None = None) -> None:
        super().__init__(beta, base)
        self.needs = replace(self.needs, columns=("margin",))

    def shift(self, pairs: Pairs) -> Tensor:
        return column(pairs, "margin")
