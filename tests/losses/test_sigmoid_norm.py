"""Length-normalised DPO: golden cases, and SimPO as its uniform-reference limit."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("sigmoid_norm", setting, losses.build("sigmoid_norm", **golden.case("sigmoid_norm", setting).hparams))


def test_uniform_reference_is_simpo(exact):
    """A reference that gives every token -log 11 cancels per token: SimPO with gamma 0."""
    batch = exact.pairs()
    for side in (batch.chosen, batch.rejected):
        side.ref_logps = torch.full_like(side.logps, -math.log(11)).detach()
    found = losses.build("sigmoid_norm", beta=2.0)(batch).loss
    expected = losses.build("simpo", beta=2.0, gamma=0.0)(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
