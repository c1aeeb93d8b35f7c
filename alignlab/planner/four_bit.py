"""A 4-bit base on tensors without storage, as bitsandbytes holds and runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignlab.scoring import value_head

BLOCK = 64  # 4-bit weights that share a scale
SCALE_BYTES = {False: 4.0, True: 1 + 4 / 256}  # of such a scale; with double quantisation its own scales are shared


class _Dequantised(torch.autograd.Function):
    """x W^T with W made whole for the moment, in forward and in backward; x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Any) -> Tensor:
        ctx.linear = linear
        y: Tensor = x @ linear.whole(x.dtype).t()
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ ctx.linear.whole(grads[0].dtype), None


class FourBitLinear(nn.Linear):
    """A linear layer that takes the room of its 4-bit weights and their scales."""

    def __init__(self, inner: nn.Linear, double_quant: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = inner.in_features, inner.out_features, inner.bias
        count = inner.in_features * inner.out_features
        size = int(count / 2 + count / BLOCK * SCALE_BYTES[double_quant])
        self.weight = nn.Parameter(torch.empty(size, 1, dtype=torch.uint8), requires_grad=False)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Returns the weights as they are made for one product."""
        return torch.empty(self.out_features, self.in_features, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        y: Tensor = _Dequantised.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantise(model: Any, double_quant: bool, checkpointing: bool) -> None:
    """Puts 4-bit layers in the place of all linear ones but the model's head, and prepares the rest as PEFT does."""
    head = model.get_output_embeddings() or value_head(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, FourBitLinear(child, double_quant))
    for one in model.parameters():
        one.requires_grad_(False)
        if one.dtype in (torch.float16, torch.bfloat16):
            one.data = one.data.float()
    # PEFT asks for gradients of the embeddings' output so that they pass through checkpoints.
    if checkpointing:
        model.enable_input_require_grads()
