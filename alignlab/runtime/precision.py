"""How exactly fp32 matrices are multiplied, and what that costs in digits on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)
FULL_FP32 = 1e-5  # fp32 products of 512 terms are about 1e-6 off, those of bf16 parts about 4e-3


def product_error(device: torch.device) -> float:
    """Returns ``|AB - exact| / |exact|`` (Frobenius) of two 512 x 512 fp32 normal matrices, against float64.

    Measured once for each device and each state of what torch lets a library do: its settings, and autocast.
    """
    kind = device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    cuda: Any = torch.backends.cuda
    mkldnn: Any = torch.backends.mkldnn
    settings = (cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision)
    return _measured(device, settings, torch.get_autocast_dtype(kind) if autocast else None)


@cache
def _measured(device: torch.device, _settings: tuple[str, ...], _autocast: torch.dtype | None) -> float:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=generator)
    exact = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).cpu().double()
    return float((found - exact).norm() / exact.norm())


def set_matmul_precision(precision: str, device: torch.device) -> float:
    """Sets ``torch.set_float32_matmul_precision`` for the process; returns the relative error that products then have.

    "high" and "medium" allow a library to multiply in fewer bits; whether it does depends on the processor: some only
    choose a faster fp32 kernel. An error above ``FULL_FP32`` is logged, and of "medium" as a warning:
    it is that of bf16.
    """
    torch.set_float32_matmul_precision(precision)
    error = product_error(device)
    level = logging.WARNING if error > FULL_FP32 and precision != "high" else logging.INFO
    logger.log(level, "float32_matmul_precision: %s: products are off by %.1e (relative)", precision, error)
    return error


@contextmanager
def true_float32() -> Iterator[None]:
    """Within it fp32 products are fp32 ones: no TF32, no bf16 parts. What was set is set again afterwards.

    torch has two settings for this, which complain of each other: the older one sets both, so it is used within; both
    are put back.
    """
    cuda: Any = torch.backends.cuda
    mkldnn: Any = torch.backends.mkldnn
    backends = (cuda.matmul, mkldnn.matmul)
    newer = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer ones were set, as transformers does for `tf32: true`
        older = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for backend, value in zip(backends, newer, strict=True):
            backend.fp32_precision = value
