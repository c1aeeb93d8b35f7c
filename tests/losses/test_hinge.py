"""Hinge: golden cases, the kink, and its value at the reference."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("hinge", setting, losses.build("hinge", **golden.case("hinge", setting).hparams))


def test_one_at_reference(exact, at_reference):
    out = losses.build("hinge")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.ones(6, dtype=torch.float64))


def test_flat_beyond_the_margin():
    """z = 1.5: no loss and no gradient; z = -1: loss 2 with slope -1; at the kink the subgradient is 0."""
    z = torch.tensor([1.5, -1.0, 1.0], requires_grad=True)
    value = losses.build("hinge").of_margin(z)
    assert value.tolist() == [0.0, 2.0, 0.0]
    assert torch.autograd.grad(value.sum(), z)[0].tolist() == [0.0, -1.0, 0.0]
