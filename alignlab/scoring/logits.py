"""An LM head over hidden states, from which any block of the logits can be made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """An LM head: logits = cap * tanh(scale * (W h + b) / cap), without the soft-cap if ``cap`` is None.

    The module is kept, not its weight ``[V, D]``, which under ZeRO-3 is there only inside the module's forward.
    ``blocks`` is the type of device whose blocks of logits are made (``block_shape``); by default where they are made.
    """

    module: nn.Linear
    scale: float = 1.0
    cap: float | None = None
    tied: bool = False
    blocks: str | None = None

    @property
    def vocabulary(self) -> int:
        """The number of logits, V."""
        return self.module.out_features

    def post_process(self, raw: Tensor) -> Tensor:
        """Turns W h + b into logits, in place."""
        return _post_processed(raw, self.scale, self.cap)

    def side(self, hidden: Tensor) -> Side:
        """Returns the head with its weights as they are now, over hidden states ``[M, D]``.

        Raises ValueError where the weight is not whole here.
        """
        weight, bias = self.module.weight, self.module.bias
        if weight.shape != (self.module.out_features, self.module.in_features):
            raise ValueError(
                f"the LM head's weight has the shape {tuple(weight.shape)} here, not "
                f"{(self.module.out_features, self.module.in_features)}: it is sharded, and gathered only in the "
                "forward of its model (score_positions)"
            )
        return Side(hidden, weight, bias, self.scale, self.cap, _compute_dtype(weight))


class States(NamedTuple):
    """The final hidden states ``[M, D]`` of a model, and the head over them."""

    hidden: Tensor
    head: Head


class Side(NamedTuple):
    """Hidden states and the weights over them, from which any block of the logits can be made."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None
    dtype: torch.dtype  # of the matmul

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Returns a new tensor with this block of the logits, in float32 (float64 stays)."""
        hidden, weight = self.hidden[rows].to(self.dtype), self.weight[columns].to(self.dtype)
        if self.bias is None:
            raw = hidden.mm(weight.t())
        else:
            raw = torch.addmm(self.bias[columns].to(self.dtype), hidden, weight.t())
        return _post_processed(raw.to(accumulation(raw.dtype)), self.scale, self.cap)


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that sums of such values are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _post_processed(raw: Tensor, scale: float, cap: float | None) -> Tensor:
    if scale != 1.0:
        raw.mul_(scale)
    return raw if cap is None else raw.div_(cap).tanh_().mul_(cap)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype that a matmul with this weight runs in; autocast leaves float64 alone."""
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype
