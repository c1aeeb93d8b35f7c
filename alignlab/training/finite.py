"""Whether the losses of an optimiser step are numbers, asked of the device once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .guard import check_finite


class RowLosses:
    """The losses of rows since the last look, left on their device: reading them makes the host wait for it."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rows: list[np.ndarray[Any, Any]] = []

    def add(self, losses: Tensor, rows: np.ndarray[Any, Any]) -> None:
        """Keeps the losses ``[N]`` of a micro-batch; ``rows [N]`` are their indices in the data."""
        self._losses.append(losses.detach())
        self._rows.append(rows)

    def check(self, dataset: Any) -> None:
        """Raises FloatingPointError naming the rows whose loss is NaN or infinite, and forgets all of them."""
        losses, rows, self._losses, self._rows = self._losses, self._rows, [], []
        if losses and not bool(torch.isfinite(together := torch.cat(losses)).all()):
            check_finite(together, torch.from_numpy(np.concatenate(rows)), dataset)
