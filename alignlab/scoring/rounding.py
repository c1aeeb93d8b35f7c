"""What rounding does to a model's scores, measured on the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.runtime import product_error, unwrap


def rounding_unit(model: nn.Module) -> float:
    """Returns the relative error of one rounding in the dtype that ``model`` computes in, here and now.

    Of the coarsest of: its weights, the autocast around it, 4-bit weights' compute dtype, and, in fp32, what products
    really are off by on its device (TF32 is measured, not asked for).
    """
    parameters = [one for one in model.parameters() if one.is_floating_point()]
    kind = parameters[0].device.type
    dtypes = {one.dtype for one in parameters}
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and dtypes != {torch.float64}:
        dtypes.add(torch.get_autocast_dtype(kind))
    quantised = getattr(getattr(unwrap(model), "config", None), "quantization_config", None)
    computed = getattr(quantised, "bnb_4bit_compute_dtype", None)
    if isinstance(computed, torch.dtype):
        dtypes.add(computed)
    unit = max(torch.finfo(dtype).eps for dtype in dtypes)
    return max(unit, product_error(parameters[0].device)) if unit == torch.finfo(torch.float32).eps else unit


@contextmanager
def jolted(model: nn.Module, draw: int, unit: float | None = None) -> Iterator[None]:
    """Within it every number of the model's token embeddings is off by one rounding, up or down.

    All later roundings then fall otherwise too, so that two scores of the same rows, one of them jolted, differ by
    what rounding is worth in this model: in half precision and many layers that is as much as any other batching or
    layout does. The signs come from ``draw`` alone; the process's random numbers are not touched.
    """
    generator = torch.Generator().manual_seed(draw)
    size = rounding_unit(model) if unit is None else unit

    def jolt(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator, dtype=torch.int8)
        return output + output * (size * (2 * signs.to(output.device) - 1)).to(output.dtype)

    handle = unwrap(model).get_input_embeddings().register_forward_hook(jolt)
    try:
        yield
    finally:
        handle.remove()
