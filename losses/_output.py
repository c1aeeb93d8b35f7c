"""What losses without a reference report as rewards, and the third completion that some of them need."""

from __future__ import annotations

from torch import Tensor

from ._base import LossOutput, Pairs, Scored


def sum_output(pairs: Pairs, loss: Tensor, beta: float) -> LossOutput:
    """Returns ``loss [N]`` with ``beta * sum_logps`` as rewards."""
    return LossOutput(loss, beta * pairs.chosen.sum_logps.detach(), beta * pairs.rejected.sum_logps.detach())


def mean_output(pairs: Pairs, loss: Tensor, beta: float) -> LossOutput:
    """Returns ``loss [N]`` with ``beta * mean_logps`` as rewards."""
    return LossOutput(loss, beta * pairs.chosen.mean_logps.detach(), beta * pairs.rejected.mean_logps.detach())


def gold_of(pairs: Pairs) -> Scored:
    """Returns the third completion of each row, or raises ValueError if there is none."""
    if pairs.gold is None:
        raise ValueError("this loss needs a third completion, the gold one, in every row, and the batch has none")
    return pairs.gold
