"""Self-play fine-tuning."""

from __future__ import annotations

import warnings

from ._base import Batch, Facts, LossOutput, Totals, pairs_of
from ._rows import row_metric
from ._scored import where_mask
from .dpo import DPO


class SPIN(DPO):
    """Self-play fine-tuning: DPO with a human answer as chosen and the previous iterate's own sample as rejected.

    Formula: ``-log sigmoid(beta (a - b))``.

    The previous iterate is the reference too, so sample the rejected completions from the very reference of the run.
    Rows do not say who wrote them. What can be seen is how likely they are under the reference: ``ref_nll/rejected``
    (nats a token) of its own samples is its entropy, and usually below ``ref_nll/chosen``; where it is above, they
    hardly are.

    Args:
        beta: the paper's lambda, > 0: 0.1, and 5.0 in its last iteration.

    Source: Chen et al. 2024, arXiv:2401.01335.
    Elsewhere: TRL ``sigmoid`` on such data.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def bind(self, facts: Facts) -> None:
        super().bind(facts)
        warnings.warn(
            "spin is DPO unless the rejected completions are samples of the run's reference, which rows do not say; "
            "where ref_nll/rejected is logged above ref_nll/chosen, they hardly are",
            stacklevel=2,
        )

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        out, pairs = super().forward(batch, totals), pairs_of(batch)
        for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            scores = where_mask(side.require("ref_logps").detach(), side.mask)
            out.metrics = out.metrics | {
                f"ref_nll/{name}": row_metric(-scores.sum(-1) / side.mask.sum(-1).clamp(min=1), batch)
            }
        return out
