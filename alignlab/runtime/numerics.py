"""How the engine of a run computes, so that frozen models are scored exactly as the policy is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # as accelerate calls them
_SHORT = {dtype: name for name, dtype in _HALF.items()}


@dataclass(frozen=True)
class Numerics:
    """How every forward of a run computes: the policy's, and those of the models it is measured against.

    Attributes:
        engine: what holds the weights in another dtype than they were loaded in: "deepspeed", "fsdp", or "".
        weights: that dtype; None where weights stay as they were loaded.
        stays: True if the engine drops the loaded weights for those (DeepSpeed, whose optimiser then keeps its own in
            float32); False if it makes them anew for each forward (FSDP).
        autocast: dtype of the arithmetic under autocast; None without.
        rounds_fp32: float32 matrices are multiplied in fewer bits (TF32).
        kernels: whose kernels stand in layers in the place of torch's, and round elsewhere: "liger", say; "" for none.
    """

    engine: str = ""
    weights: torch.dtype | None = None
    stays: bool = False
    autocast: torch.dtype | None = None
    rounds_fp32: bool = False
    kernels: str = ""

    def name(self, loaded: torch.dtype) -> str:
        """Returns what the score cache calls it, for weights loaded in that dtype."""
        return self._precision(loaded) + (f" with {self.kernels}" if self.kernels else "")

    def _precision(self, loaded: torch.dtype) -> str:
        if self.weights is not None:
            under = "" if self.autocast is None else f" under {_SHORT[self.autocast]} autocast"
            return f"{_plain(self.weights)} weights of {self.engine}{under}"
        if self.autocast is not None:
            return _SHORT[self.autocast]
        return _plain(loaded) + (" rounded" if self.rounds_fp32 and loaded == torch.float32 else "")

    def settle(self, model: nn.Module) -> None:
        """Casts a model's weights for good where the engine will, so that it computes alike before it is wrapped."""
        if self.stays:
            for weight in self._others(model):
                weight.data = weight.data.to(self.weights)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within it a model that no engine has wrapped yet has the weights that the engine computes with."""
        kept = [(weight, weight.data) for weight in self._others(model)]
        for weight, data in kept:
            weight.data = data.to(self.weights)
        try:
            yield
        finally:
            for weight, data in kept:
                weight.data = data

    def _others(self, model: nn.Module) -> list[Tensor]:
        """Returns the whole weights of another dtype than the engine's; not quantised ones, and no shards."""
        if self.weights is None:
            return []
        return [
            weight
            for weight in model.parameters()
            if weight.is_floating_point()
            and weight.dtype != self.weights
            and not isinstance(weight, DTensor)
            and not hasattr(weight, "ds_id")
            and not hasattr(weight, "quant_state")
        ]


def numerics_of(accelerator: Any, *, rounds_fp32: bool = False) -> Numerics:
    """Returns how the engine that an ``accelerate.Accelerator`` stands for computes.

    DeepSpeed's own half precision has no autocast: the engine casts every weight. Its ``torch_autocast`` block is one.
    FSDP2 gathers weights in the dtype of its policy, and runs them under autocast as well.

    Raises:
        ValueError: ``data_types.buffer_dtype``, or fp16 where accelerate has none and would compute in float32.
    """
    kind, mixed = str(accelerator.distributed_type).rpartition(".")[2], str(accelerator.mixed_precision)
    half = _HALF.get(mixed)
    if kind == "DEEPSPEED":
        return _of_deepspeed(accelerator.deepspeed_plugin.deepspeed_config, half, rounds_fp32)
    if mixed != "no" and (half is None or not accelerator.native_amp):
        raise ValueError(
            f"{mixed}: there is no autocast for it here ({accelerator.device.type}), and the run would compute in "
            "another precision than it says; allowed: bf16, or neither"
        )
    policy = accelerator.state.fsdp_plugin.mixed_precision_policy if kind == "FSDP" else None
    if policy is not None and policy.param_dtype not in (None, torch.float32):
        return Numerics("fsdp", policy.param_dtype, autocast=half, rounds_fp32=rounds_fp32)
    return Numerics(autocast=half, rounds_fp32=rounds_fp32)


def _of_deepspeed(config: Mapping[str, Any], half: torch.dtype | None, rounds_fp32: bool) -> Numerics:
    if config.get("data_types", {}).get("buffer_dtype") is not None:
        raise ValueError(
            "deepspeed: data_types.buffer_dtype cannot work here: the reference is scored before DeepSpeed casts "
            "buffers, and would differ from the policy; leave it out, and buffers stay as they were loaded"
        )
    block = config.get("torch_autocast", {})
    if half is None and block.get("enabled"):
        return Numerics(autocast=_dtype(block.get("dtype")), rounds_fp32=rounds_fp32)
    return Numerics("deepspeed" if half else "", half, stays=half is not None, rounds_fp32=rounds_fp32)


def _dtype(name: Any) -> torch.dtype:
    """Returns the dtype that DeepSpeed's configuration names: bf16, bfloat16, torch.bfloat16, ..."""
    plain = str(name).removeprefix("torch.")
    found = _HALF.get(plain) or getattr(torch, plain, None)
    if found not in _SHORT:
        raise ValueError(f"deepspeed: torch_autocast.dtype: expected bfloat16 or float16, found {name!r}")
    return found


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
