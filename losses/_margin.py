"""The family of losses that depend on a pair only through its margin."""

from __future__ import annotations

from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Pairs, Totals, pairs_of
from ._checks import check_positive
from ._output import pair_output


class MarginLoss(Loss):
    """A loss of the margin ``z = beta * (a - b)``, where a and b are the log-ratios of chosen and rejected.

    Subclasses implement ``of_margin``. Losses that shift or scale the margin take any of this family as their base.
    """

    needs = Needs(ref_logps=True)

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)

    def margin(self, pairs: Pairs) -> Tensor:
        """Returns ``z = beta * (a - b)``, ``[N]``, with gradient."""
        return self.beta * (pairs.chosen.log_ratios - pairs.rejected.log_ratios)

    def of_margin(self, z: Tensor) -> Tensor:
        """Returns the loss of each row, ``[N]``, as a function of its margin ``z [N]``."""
        raise NotImplementedError

    def output(self, pairs: Pairs, loss: Tensor) -> LossOutput:
        """Returns ``loss [N]`` with the implicit rewards."""
        return pair_output(pairs, loss, self.beta)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        return self.output(pairs, self.of_margin(self.margin(pairs)))


def margin_base(
    base: Loss | None, beta: float | None, default: type[MarginLoss], reason: str = "it cannot be shifted"
) -> MarginLoss:
    """Returns ``base``, or the default with ``beta`` (0.1 where none is given) where there is none.

    Raises ValueError with the ``reason`` if the base is no function of the margin, or if beta is given twice.
    """
    if base is None:
        return default(0.1 if beta is None else beta)
    if not isinstance(base, MarginLoss) or type(base).forward is not MarginLoss.forward:  # rpo and cpo add more
        raise ValueError(f"base: {type(base).__name__} is no function of the margin alone, so {reason}")
    if beta is not None:
        raise ValueError(f"beta belongs to the base where one is given, found beta {beta} beside {type(base).__name__}")
    return base
