"""Layers compiled one by one, in place: the engine's hooks and the LM head stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn


def leave_uncompiled(accelerator: Accelerator) -> None:
    """Keeps accelerate from compiling the whole model, which it does wherever a run of this process once asked."""
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO


@contextmanager
def compiled_layers(model: nn.Module, backend: str | None, mode: str | None) -> Iterator[int]:
    """Within it the repeated layers of a model are compiled, each by itself; yields how many there are.

    Layers of one kind share their graphs: one for the first length that is met, and one for all others. The rest of the
    model stays as it is: the LM head is another function at each call here, and would be compiled anew each time.

    Args:
        backend, mode: as ``torch.compile`` takes them.

    Raises:
        ValueError: the model has no list of layers of one class.
    """
    layers = list(_repeated(model))
    if not layers:
        raise ValueError(
            f"torch_compile: {type(model).__name__} has no list of layers of one class, and layers are what is compiled"
        )
    for layer in layers:
        layer.compile(backend=backend or "inductor", mode=mode)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the members of lists of one class, outermost lists only: what a layer repeats inside belongs to it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(one) for one in child}) == 1:
            yield from child
        else:
            yield from _repeated(child)


def uncompiled() -> AbstractContextManager[None]:
    """Within it nothing that is compiled runs so: for forwards of other shapes, which would cost graphs."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
