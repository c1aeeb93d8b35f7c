"""A batch whose tensors share one buffer of bytes, so that one copy takes it to a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; what the kernels that read several numbers at once ask for


class _Place(NamedTuple):
    """Where a tensor lies in the buffer."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Parcel(dict[str, Any]):
    """A batch that moves as one: a dict, nested in any way, whose tensors are views of one buffer.

    torch's DataLoader pins it and accelerate's ``send_to_device`` moves it through the two methods below, with one
    copy, and a worker process hands over one tensor. What is no tensor, numpy arrays among it, stays on the host. What
    is put into the dict later does not travel: make a new parcel.

    Args:
        plan: the batch, with a ``_Place`` wherever a tensor stands. buffer: ``[bytes]`` uint8.
    """

    def __init__(self, plan: Mapping[str, Any], buffer: Tensor) -> None:
        self.plan, self.buffer = plan, buffer
        super().__init__(_mapped(plan, _Place, self._tensor))

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Parcel:
        """Returns a batch of dicts, lists, tuples and tensors on the CPU as a parcel; its tensors are copied."""
        tensors: list[tuple[_Place, Tensor]] = []
        end = 0

        def placed(tensor: Tensor) -> _Place:
            nonlocal end
            place = _Place(end, tensor.dtype, tuple(tensor.shape))
            tensors.append((place, tensor))
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            return place

        plan = _mapped(batch, Tensor, placed)
        parcel = cls(plan, torch.empty(end, dtype=torch.uint8))
        for place, tensor in tensors:
            parcel._tensor(place).copy_(tensor)
        return parcel

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Parcel:
        """Returns the batch on a device."""
        return Parcel(self.plan, self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Parcel:
        """Returns the batch in memory from which a copy to a GPU need not be waited for."""
        return Parcel(self.plan, self.buffer.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.plan, self.buffer)

    def _tensor(self, place: _Place) -> Tensor:
        size = prod(place.shape) * place.dtype.itemsize
        return self.buffer[place.start : place.start + size].view(place.dtype).view(place.shape)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Returns ``value`` with everything of a kind in it changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, kind, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(item, kind, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
