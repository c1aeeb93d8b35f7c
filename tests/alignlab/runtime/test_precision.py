"""The rate of fp32 products is chosen by a key, and their error is measured, not assumed."""

import logging

import pytest
import torch

from alignlab.runtime.precision import FULL_FP32, product_error, set_matmul_precision, true_float32


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


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_true_float32_puts_back_what_was_set(precision):
    """By the older of torch's two settings; within, both say full fp32, and products are."""
    torch.set_float32_matmul_precision(precision)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    with true_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert product_error(torch.device("cpu")) < FULL_FP32
    assert torch.get_float32_matmul_precision() == precision
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == before


def test_true_float32_puts_back_the_newer_setting():
    """transformers' `tf32: true` sets it alone, and then the older one may not even be read."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    with true_float32():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_bf16_products_would_be_warned_of():
    """The threshold lies between both: products of matrices rounded to bf16 are far above it."""
    left, right = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    assert ((rounded - exact).norm() / exact.norm()).item() > 100 * FULL_FP32
