"""Direct preference optimisation with an offset."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._base import Facts, Loss, Pairs
from ._checks import check_non_negative
from ._shift import ShiftedLoss, column


class ODPO(ShiftedLoss):
    """DPO with an offset: the margin must exceed the logarithm of the gap of scores.

    Formula: ``-log sigmoid(z - alpha log(score_w - score_l))``, z = beta * (a - b); of any base, its loss of that.

    With alpha 0, or with gaps of 1, this is the base. A pair whose chosen score is not the higher one has no offset
    (the official code gives NaN, or no loss at a tie): it is refused.

    Args:
        beta: of DPO where no base is given, > 0; 0.1 where nothing is given.
        alpha: weight of the offset, >= 0.
        base: any loss of the margin.

    Raises:
        ValueError: an option is out of its range, or a chosen score is not above the rejected one.

    Source: Amini et al. 2024, arXiv:2402.10571.
    Elsewhere: neither in TRL nor in LLaMA-Factory.
    """

    def __init__(self, beta: float | None = None, alpha: float = 1.0, base: Loss | None = None) -> None:
        super().__init__(beta, base)
        self.alpha = check_non_negative("alpha", alpha)
        self.needs = replace(self.needs, columns=("score_chosen", "score_rejected"))

    def bind(self, facts: Facts) -> None:
        super().bind(facts)
        least, _ = facts.ranges.get("score_gap", (1.0, 1.0))
        if not least > 0:
            raise ValueError(f"odpo needs score_chosen > score_rejected in every row, found a difference of {least:g}")

    def shift(self, pairs: Pairs) -> Tensor:
        chosen, rejected = column(pairs, "score_chosen"), column(pairs, "score_rejected")
        gap = chosen - rejected
        if bool((~(gap > 0)).any()):
            row = int((~(gap > 0)).nonzero()[0])
            raise ValueError(
                f"odpo needs score_chosen > score_rejected in every row, found {chosen[row]:g} and {rejected[row]:g}"
            )
        return self.alpha * torch.log(gap)
