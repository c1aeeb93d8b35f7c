"""Chi-PO: golden cases, its slope at the reference, and the clip."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs, Scored


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("chi_po", setting, losses.build("chi_po", **golden.case("chi_po", setting).hparams))


def test_at_reference(exact, at_reference):
    """Value log 2; exp(u) + u has slope 2 at 0, so the gradient is twice DPO's -beta / 2."""
    batch = at_reference(exact.pairs())
    out = losses.build("chi_po", beta=0.1)(batch)
    torch.testing.assert_close(out.loss, torch.full((6,), math.log(2), dtype=torch.float64))
    (slope,) = torch.autograd.grad(out.loss.sum(), batch.chosen.logps)
    assert slope[:, 0].tolist() == pytest.approx([-0.1] * 6)


def test_no_gradient_beyond_the_clip(exact):
    batch = exact.pairs()
    out = losses.build("chi_po", beta=1.0, clip=1e-6)(batch)
    (slope,) = torch.autograd.grad(out.loss.sum(), batch.chosen.logps)
    assert not slope.any()


def test_far_log_ratios_are_finite():
    """Log-ratios 200 and 300: both exponentials are clamped to the same number, so z = beta (200 - 300) = -1."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen, rejected = (Scored(torch.full((1, 1), x), mask, torch.zeros(1, 1)) for x in (200.0, 300.0))
    out = losses.build("chi_po", beta=0.01)(Pairs(chosen, rejected))
    assert out.loss.item() == pytest.approx(math.log1p(math.e), rel=1e-6)
