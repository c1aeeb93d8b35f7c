"""Mixed preference optimisation."""

from __future__ import annotations

from collections.abc import Sequence

from .bco_pair import BCOPair
from .dpo import DPO
from .sft import SFT
from .weighted_sum import WeightedSum


class MPO(WeightedSum):
    """Mixed preference optimisation: preference, absolute quality and likelihood together.

    Formula: ``weights_1 DPO + weights_2 BCO-pair + weights_3 SFT`` (SFT: token mean over the optimiser step).

    Args:
        beta: of DPO and BCO-pair, > 0.
        weights: three numbers.

    Raises:
        ValueError: an option is out of its range.

    Source: Wang et al. 2024, arXiv:2411.10442.
    Elsewhere: TRL ``[sigmoid, bco_pair, sft]`` with ``loss_weights [0.8, 0.2, 1.0]``.
    Collision: "MPO" is mixed preference optimisation here; multi-objective methods of that name are others.
    """

    def __init__(self, beta: float = 0.1, weights: Sequence[float] = (0.8, 0.2, 1.0)) -> None:
        super().__init__([DPO(beta), BCOPair(beta), SFT()], weights)
