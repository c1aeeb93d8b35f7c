"""DiscoPOP: golden cases, its value at the reference, and far negative margins."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("discopop", setting, losses.build("discopop", **golden.case("discopop", setting).hparams))


def test_at_reference(exact, at_reference):
    """m = 1/2: half of log 2 and half of 1."""
    out = losses.build("discopop")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 0.5 * math.log(2) + 0.5, dtype=torch.float64))


def test_far_negative_margins_are_finite_in_float32():
    """At z = -100 the blend is all logistic, 100, where m * exp(-z) would be 0 * inf."""
    z = torch.tensor([-100.0, -1000.0], requires_grad=True)
    value = losses.build("discopop").of_margin(z)
    assert value.tolist() == [100.0, 1000.0]
    assert torch.autograd.grad(value.sum(), z)[0].tolist() == [-1.0, -1.0]
