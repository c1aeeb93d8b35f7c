"""AlphaPO: golden cases and its SimPO limit."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("alphapo", setting, losses.build("alphapo", **golden.case("alphapo", setting).hparams))


def test_small_alpha_is_simpo(exact):
    """(1 - exp(-alpha x)) / alpha = x - alpha x^2 / 2 + ...: within 1e-6 at alpha 1e-8, and equal at 0."""
    batch = exact.pairs()
    expected = losses.build("simpo", beta=2.5, gamma=0.1)(batch).loss
    torch.testing.assert_close(losses.build("alphapo", alpha=1e-8)(batch).loss, expected, rtol=0, atol=1e-6)
    assert torch.equal(losses.build("alphapo", alpha=0.0)(batch).loss, expected)


def test_alpha_must_be_finite():
    with pytest.raises(ValueError, match=r"loss\.alpha must be finite"):
        losses.build("alphapo", alpha=float("inf"))
