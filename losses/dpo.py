"""Direct preference optimisation, with its two forms of label smoothing."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ._checks import check_interval
from ._margin import MarginLoss
from ._scored import log_sigmoid


class DPO(MarginLoss):
    """Direct preference optimisation: raises the log-ratio of the chosen completion above the rejected one's.

    Formula: ``-log sigmoid(z)``, z = beta * (a - b), e the label smoothing;
    conservative ``-(1 - e) log sigmoid(z) - e log sigmoid(-z)``;
    robust ``(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2e)``.

    The conservative form has its minimum where sigmoid(z) = 1 - e. The robust form is unbiased under flipped labels,
    can be negative and has no lower bound: do not stop early on its value.

    On trajectories of several turns this is M-DPO (Xiong et al. 2024, arXiv:2409.02392): mask tool and user turns.

    Args:
        beta: strength of the pull to the reference, > 0.
        label_smoothing: e, the assumed share of flipped labels, in [0, 0.5).
        smoothing: which form ``label_smoothing`` takes.

    Raises:
        ValueError: an option is out of its range.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; conservative: Mitchell 2023 (note);
        robust: Chowdhury et al. 2024, arXiv:2403.00409.
    Elsewhere: TRL ``sigmoid`` (1.16 ignores its ``label_smoothing`` there) and ``robust``; LLaMA-Factory ``sigmoid``.
    """

    aliases: ClassVar = {
        "sigmoid": {},
        "cdpo": {"label_smoothing": 0.1},
        "robust_dpo": {"smoothing": "robust", "label_smoothing": 0.1},
        "m_dpo": {},
        "robust": {"smoothing": "robust", "label_smoothing": 0.1},
    }

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        smoothing: Literal["conservative", "robust"] = "conservative",
    ) -> None:
        super().__init__(beta)
        self.label_smoothing = check_interval("label_smoothing", label_smoothing, 0.0, 0.5)
        self.smoothing = smoothing

    def of_margin(self, z: Tensor) -> Tensor:
        e = self.label_smoothing
        if self.smoothing == "robust":
            return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)
        return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)
