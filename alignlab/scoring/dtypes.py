"""A model whose weights cannot be multiplied with each other, said by the names of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from alignlab.runtime import unwrap


@contextmanager
def dtypes_said(model: nn.Module) -> Iterator[None]:
    """Within it, a product of two dtypes is an error that names the weights and the ways out.

    Raises:
        ValueError: in place of torch's RuntimeError, where the model has weights of several dtypes.
    """
    try:
        yield
    except RuntimeError as error:
        first: dict[torch.dtype, str] = {}
        for name, weight in unwrap(model).named_parameters():
            if weight.is_floating_point():
                first.setdefault(weight.dtype, name)
        if "dtype" not in str(error) or len(first) < 2:
            raise
        found = " and ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in first.items())
        raise ValueError(
            f"model.dtype: there are weights in {found}, which cannot be multiplied with each other; allowed are one "
            "dtype for all, or autocast (bf16: true)"
        ) from error
