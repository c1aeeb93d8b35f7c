"""APO: golden cases, values at the reference, directions."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("variant", ["zero", "down"])
def test_golden(golden, variant, setting):
    name = f"apo_{variant}"
    golden.check(name, setting, losses.build("apo", variant=variant, **golden.case(name, setting).hparams))


@pytest.mark.parametrize("variant", ["zero", "down"])
def test_one_at_reference(exact, at_reference, variant):
    out = losses.build("apo", variant=variant)(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.ones(6, dtype=torch.float64))


def test_directions_at_reference(exact, at_reference):
    """zero: chosen -beta / 4, rejected +beta / 4; down: chosen beta / 4 - beta / 4 = 0, rejected +beta / 4."""
    batch = at_reference(exact.pairs())
    for variant, expected in (("zero", -0.025), ("down", 0.0)):
        out = losses.build("apo", variant=variant)(batch)
        chosen, rejected = torch.autograd.grad(out.loss.sum(), [batch.chosen.logps, batch.rejected.logps])
        assert chosen[:, 0].tolist() == pytest.approx([expected] * 6)
        assert rejected[:, 0].tolist() == pytest.approx([0.025] * 6)
