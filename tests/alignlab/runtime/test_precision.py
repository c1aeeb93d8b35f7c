"""The rate of fp32 products is chosen by a key, and their error is measured, not assumed."""

import logging

import pytest
import torch

from alignlab.runtime.precision import FULL_FP32, set_matmul_precision


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_error_is_measured(precision, caplog):
    """Full fp32 stays below 1e-5; a kernel that rounds to bf16 is off by about 2 ** -9 and is warned of."""
    with caplog.at_level(logging.INFO):
        error = set_matmul_precision(precision, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == precision
    assert 1e-8 < error < (FULL_FP32 if precision == "highest" else 1e-2)
    assert caplog.records[-1].levelno == (logging.WARNING if error > FULL_FP32 else logging.INFO)
    assert f"{error:.1e}" in caplog.text


def test_bf16_products_would_be_warned_of():
    """The threshold lies between both: products of matrices rounded to bf16 are far above it."""
    left, right = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    assert ((rounded - exact).norm() / exact.norm()).item() > 100 * FULL_FP32
