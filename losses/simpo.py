"""Simple preference optimisation."""

from __future__ import annotations

from torch import Tensor

from ._base import LossOutput, Needs, Pairs
from ._checks import check_non_negative
from ._output import mean_output
from .dpo import DPO


class SimPO(DPO):
    """Simple preference optimisation: mean log-probabilities as rewards, with a target margin and no reference.

    Formula: ``-log sigmoid(beta (Lbar_w - Lbar_l) - gamma)``; label smoothing as in conservative DPO.

    gamma stands outside of beta, as in the paper and TRL; the official configs give ``gamma_beta_ratio = gamma / beta``
    (0.1 to 0.8 at beta 2 to 2.5; 0.3 or 0.5 at beta 10).

    Args:
        beta: > 0.
        gamma: target margin, >= 0.
        label_smoothing: assumed share of flipped labels, in [0, 0.5).

    Raises:
        ValueError: an option is out of its range.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    Elsewhere: TRL ``CPOTrainer`` ``simpo`` with ``cpo_alpha 0`` (``simpo_gamma``); LLaMA-Factory ``simpo``.
    """

    needs = Needs()

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__(beta, label_smoothing)
        self.gamma = check_non_negative("gamma", gamma)

    def margin(self, pairs: Pairs) -> Tensor:
        return self.beta * (pairs.chosen.mean_logps - pairs.rejected.mean_logps) - self.gamma

    def output(self, pairs: Pairs, loss: Tensor) -> LossOutput:
        return mean_output(pairs, loss, self.beta)
