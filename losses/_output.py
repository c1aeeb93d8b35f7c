"""What losses report as rewards, with a reference and without, and the third completion that some of them need."""

from __future__ import annotations

from torch import Tensor

from ._base import LossOutput, Metrics, Pairs
from ._scored import Scored


def pair_output(pairs: Pairs, loss: Tensor, beta: float, metrics: Metrics | None = None) -> LossOutput:
    """Returns ``loss [N]`` with the implicit rewards ``beta * log_ratios`` of a reference-based pairwise loss."""
    return LossOutput(
        loss=loss,
        chosen_rewards=beta * pairs.chosen.log_ratios.detach(),
        rejected_rewards=beta * pairs.rejected.log_ratios.detach(),
        metrics=metrics or {},
    )


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
