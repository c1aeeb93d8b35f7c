"""A pretend accelerator: tensors that compute on the CPU, say that they lie elsewhere, and refuse to meet its own.

Within ``accelerator()`` every run of the Trainer has ``DEVICE`` for its device. A tensor that is made or moved there is
a ``Pretend``: its storage is the CPU's and its arithmetic exact, but an operation that mixes it with the CPU's tensors
raises ``MixedDevices``, as a GPU would. What a GPU forgives because it helps itself with a copy and a wait is refused
as well, namely an index on the CPU; single numbers in elementwise arithmetic are forgiven as a GPU does.

What it cannot see:
- memory, streams, asynchronous copies, pinned memory, and how often the host waits: state left on the CPU by a loss
  that moves what it meets (``group_robust`` does) is slow on a GPU, and not wrong;
- kernels: dtypes, strides and shapes that a GPU's would refuse, and their rounding;
- autocast: ``torch.autocast`` knows no such device, so that mixed precision computes in the weights' dtype;
- other ranks: collectives are not crossed; engines are seen by where they leave the model before they wrap it;
- what C++ does below the dispatcher with a tensor that is a subclass, and ``torch.compile``;
- branches on ``device.type == "cuda"``: its own type is "lazy", the one beside "meta" that autograd serves in this
  thread, and that torch and its libraries do not treat in a way of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import TrainingArguments

from alignlab.scoring import head

DEVICE = torch.device("lazy", 0)
_AT, _COPIES = torch.ops.prim.device.default, ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_FILLS = ("aten::masked_fill", "aten::masked_fill_", "aten::fill_", "aten::index_put", "aten::index_put_")


_DATA: Any = torch.Tensor.data


class MixedDevices(RuntimeError):
    """An operation was given tensors of the pretend device and of the CPU."""


class Pretend(torch.Tensor):
    """A tensor on the pretend device; ``own`` is the same storage as a plain tensor of the CPU."""

    own: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, own: torch.Tensor) -> Pretend:
        made = torch.Tensor._make_subclass(cls, own, dispatch_device=True)
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        """A GPU's tensor may get the data of a CPU's; here both would have to be one class."""
        if not isinstance(value, Pretend):
            raise MixedDevices("the data of a tensor on the pretend device set to a tensor of the CPU")
        _DATA.__set__(self, value)
        self.own = value.own

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as a tensor of the CPU: what a file holds is loaded there first."""
        return self.detach().cpu().__reduce_ex__(protocol)


class _Everywhere(TorchDispatchMode):
    """Sees what is made without any tensor as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def is_there(value: Any) -> bool:
    """True for a tensor on the pretend device."""
    return isinstance(value, Pretend)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs one operation on the CPU's storage, after a look at where its tensors lie."""
    if func is _AT:
        return DEVICE if is_there(args[0]) else args[0].device
    leaves = tree_leaves((args, kwargs))
    there = any(isinstance(leaf, Pretend) for leaf in leaves)
    asked = kwargs.get("device")
    if there:
        _check(func, args, kwargs, leaves)
    if asked is not None and torch.device(asked).type == DEVICE.type:
        kwargs, there = {**kwargs, "device": torch.device("cpu")}, True
    elif asked is not None:
        there = False
    if not there and asked is None:
        return func(*args, **kwargs)
    owned = tree_map(_own, args)
    if func._schema.name == "aten::histc":  # a GPU counts whole numbers, the CPU has no kernel for it
        result = func(owned[0].float(), *owned[1:], **kwargs).to(owned[0].dtype)
    else:
        result = func(*owned, **tree_map(_own, kwargs))
    if func._schema.is_mutable and args and result is _own(args[0]):
        if torch.Tag.inplace_view in func.tags:  # its shape changes in place, so ours must
            with no_dispatch():
                func(*args, **kwargs)
        return args[0]
    return tree_map(_pretend, result) if there else result


def _own(value: Any) -> Any:
    return value.own if isinstance(value, Pretend) else value


def _pretend(value: Any) -> Any:
    return Pretend(value) if isinstance(value, torch.Tensor) and not isinstance(value, Pretend) else value


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> None:
    """Raises MixedDevices where tensors of both places meet in an operation that is no copy."""
    name = func._schema.name
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise MixedDevices(f"{name}: a generator of the CPU draws for a tensor on {DEVICE}")
    if name in _COPIES:
        return
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Pretend)]
    if not here:
        return
    forgiving = torch.Tag.pointwise in func.tags or name in _FILLS
    changed = func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and not is_there(args[0])
    indexed = name.startswith("aten::index_put") and any(leaf is not None and not is_there(leaf) for leaf in args[1])
    bad = here if changed or indexed or not forgiving else [one for one in here if one.dim()]
    if bad:
        raise MixedDevices(f"{name} is given a tensor of the CPU, {bad[0].dtype} {tuple(bad[0].shape)}, on {DEVICE}")


# ---- the places where Python asks for a device without an operation that is dispatched -------------------------------

_tensor, _autocast = torch.tensor, torch.autocast.__init__
_is_autocast, _autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype


def _plain(kind: Any) -> Any:
    return "cpu" if kind == DEVICE.type else kind


def _made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    if device is None or torch.device(device).type != DEVICE.type:
        return _tensor(data, device=device, **options)
    return _tensor(data, **options).to(DEVICE)


def _begun(self: Any, device_type: str, *args: Any, **options: Any) -> None:
    _autocast(self, _plain(device_type), *args, **options)


def _stored(name: str, value: Any) -> property:
    """Returns a property that hides what is stored under its name, and is there again when it goes."""
    return property(lambda _: value, lambda self, given: self.__dict__.__setitem__(name, given))


def _device_of(args: TrainingArguments) -> torch.device:
    args._setup_devices  # noqa: B018  number of ranks, engines: as on any machine
    return DEVICE


@contextmanager
def accelerator() -> Iterator[None]:
    """Within it every run's device is the pretend one; a model that moves there keeps its parameters' identity."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    # What `with torch.device(...)` reaches is listed once a process, by the functions themselves. Listed first in here,
    # it would have our `tensor` for torch's, also afterwards, and transformers, which asks `torch.tensor([])` whether
    # it builds on "meta", would take rotary frequencies for made and leave them as the memory was.
    torch.utils._device._device_constructors()
    with ExitStack() as stack:
        for owner, name, value in (
            (TrainingArguments, "device", property(_device_of)),
            (Accelerator, "device", _stored("device", DEVICE)),
            (PartialState, "device", _stored("device", DEVICE)),
            (AcceleratorState, "device", _stored("device", DEVICE)),
            (torch, "tensor", _made),
            (torch.autocast, "__init__", _begun),
            (torch, "is_autocast_enabled", lambda kind="cuda": _is_autocast(_plain(kind))),
            (torch, DEVICE.type, SimpleNamespace(_initialized=False)),  # what checkpointing asks for random states
            (head, "nn", SimpleNamespace(Linear=nn.Linear, Parameter=Pretend)),  # a plain weight's type there
            (torch, "get_autocast_dtype", lambda kind: _autocast_dtype(_plain(kind))),
        ):
            stack.enter_context(patch.object(owner, name, value, create=True))
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        stack.enter_context(_Everywhere())
        yield
