"""How exactly fp32 matrices are multiplied, and what that costs in digits on this machine."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)
FULL_FP32 = 1e-5  # fp32 products of 512 terms are about 1e-6 off, those of bf16 parts about 4e-3


def set_matmul_precision(precision: str, device: torch.device) -> float:
    """Sets ``torch.set_float32_matmul_precision`` for the process; returns the relative error that products then have.

    The error is ``|AB - exact| / |exact|`` (Frobenius) of two 512 x 512 normal matrices against float64. "high" and
    "medium" allow a library to multiply in fewer bits; whether it does depends on the processor: some only choose a
    faster fp32 kernel. An error above ``FULL_FP32`` is logged as a warning.
    """
    torch.set_float32_matmul_precision(precision)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=generator)
    exact = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).cpu().double()
    error = float((found - exact).norm() / exact.norm())
    level = logging.WARNING if error > FULL_FP32 else logging.INFO
    logger.log(level, "float32_matmul_precision: %s: products are off by %.1e (relative)", precision, error)
    return error
