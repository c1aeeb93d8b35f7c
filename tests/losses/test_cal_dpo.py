"""Cal-DPO: golden cases, and its value at the reference."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    """The second setting averages the calibration over the batch: other rows, the same mean and gradient."""
    hparams = golden.case("cal_dpo", setting).hparams
    loss = losses.build("cal_dpo", beta=hparams["beta"], calibration=hparams.get("cal_weight", 1.0))
    golden.check("cal_dpo", setting, loss, per_example=setting == 0)


def test_at_reference(exact, at_reference):
    """log 2 + c / (2 beta^2)."""
    out = losses.build("cal_dpo", beta=0.2, calibration=0.5)(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), math.log(2) + 0.5 / 0.08, dtype=torch.float64))
