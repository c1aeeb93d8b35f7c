"""Self-play fine-tuning."""

from __future__ import annotations

from .dpo import DPO


class SPIN(DPO):
    """Self-play fine-tuning: DPO with a human answer as chosen and the previous iterate's own sample as rejected.

    Formula: ``-log sigmoid(beta (a - b))``.

    The previous iterate is the reference too, so sample the rejected completions from the very reference of the run.

    Args:
        beta: the paper's lambda, > 0: 0.1, and 5.0 in its last iteration.

    Source: Chen et al. 2024, arXiv:2401.01335.
    Elsewhere: TRL ``sigmoid`` on such data.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
