"""The family of losses that demand an offset of the margin, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Batch, Facts, Loss, LossOutput, Pairs, Totals, bind, pairs_of
from ._margin import margin_base
from .dpo import DPO


class ShiftedLoss(Loss):
    """Any loss of the margin, of ``z - shift`` instead of z; subclasses implement ``shift``."""

    def __init__(self, beta: float | None = None, base: Loss | None = None) -> None:
        super().__init__()
        self.base = margin_base(base, beta, DPO)
        self.needs = self.base.needs

    def bind(self, facts: Facts) -> None:
        bind("base", self.base, facts)

    def shift(self, pairs: Pairs) -> Tensor:
        """Returns by how much the margin of each row is to be exceeded, ``[N]``, without gradient."""
        raise NotImplementedError

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        pairs = pairs_of(batch)
        z = self.base.margin(pairs)
        return self.base.output(pairs, self.base.of_margin(z - self.shift(pairs).to(z)))


def column(pairs: Pairs, name: str) -> Tensor:
    """Returns the column ``name [N]`` of the pairs, or raises ValueError if there is none."""
    values = getattr(pairs, name)
    if values is None:
        raise ValueError(f"this loss needs the column {name!r} of every row, and the batch has none")
    assert isinstance(values, Tensor)
    return values.detach().double() if values.dtype == torch.float64 else values.detach().float()
