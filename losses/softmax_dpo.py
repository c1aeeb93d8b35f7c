"""Direct preference optimisation of the best completion against all others at once."""

from __future__ import annotations

from typing import ClassVar

from ._base import Batch, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_positive
from ._lists import best, mean_where, won_places


class SoftmaxDPO(Loss):
    """Softmax DPO: raises the best completion of a list above all that are worse, the nearest of them most.

    Formula: ``log(1 + sum_l exp(s_l - s_w))``, s = beta (L - R), w the best completion and l all that are worse.

    With two completions it is DPO. It is the first place of ``plackett_luce``: the order of the rest is not learned.
    Of several best ones, tied, the mean over them is taken.

    Args:
        beta: strength of the pull to the reference, > 0.

    Raises:
        ValueError: an option is out of its range.

    Source: Chen et al. 2024, arXiv:2406.09215 (S-DPO), as its code has it; ties are not in it.
    Elsewhere: neither in TRL nor in LLaMA-Factory; chenyuxin1999/S-DPO, where exp of a gap can overflow.
    """

    needs = Needs(data="lists", ref_logps=True)
    aliases: ClassVar = {"s_dpo": {}}

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        s = self.beta * lists.completions.log_ratios
        return LossOutput(mean_where(won_places(s, lists), best(lists)), rewards=s.detach())
