"""APO-zero on labelled rows: golden cases, and KTO without a drift."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("apo_zero_unpaired", setting)
    golden.check("apo_zero_unpaired", setting, losses.build("apo_zero_unpaired", **case.hparams), golden.labelled())


def test_is_kto_without_drift(exact):
    """With a drift clamped to 0, KTO has the same values and gradients."""
    batch = exact.labelled(flip_kl=True)
    found, expected = losses.build("apo_zero_unpaired")(batch).loss, losses.build("kto")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    slopes = [torch.autograd.grad(loss.sum(), batch.completions.logps)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-15)
