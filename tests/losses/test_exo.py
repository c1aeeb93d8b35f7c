"""EXO: golden cases, its value at the reference, and its minimum."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("exo_pair", setting, losses.build("exo", **golden.case("exo_pair", setting).hparams))


def test_at_reference(exact, at_reference):
    """z = 0: -log 2 - 0.5 log(e (1 - e))."""
    out = losses.build("exo", epsilon=0.01)(at_reference(exact.pairs()))
    expected = -math.log(2) - 0.5 * math.log(0.01 * 0.99)
    torch.testing.assert_close(out.loss, torch.full((6,), expected, dtype=torch.float64))


def test_zero_where_the_policy_is_the_label():
    """The KL is 0 at sigmoid(z) = 1 - e."""
    z = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64)
    assert losses.build("exo", epsilon=0.1).of_margin(z).item() == pytest.approx(0.0, abs=1e-14)


def test_epsilon_is_checked():
    with pytest.raises(ValueError, match=r"loss\.epsilon must be in \(0, 0\.5\), found 0"):
        losses.build("exo", epsilon=0.0)
