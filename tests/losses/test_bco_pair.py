"""BCO on pairs: golden cases and its value at the reference."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("bco_pair", setting, losses.build("bco_pair", **golden.case("bco_pair", setting).hparams))


def test_two_log_two_at_reference(exact, at_reference):
    out = losses.build("bco_pair")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 2 * math.log(2), dtype=torch.float64))


def test_delta_must_be_finite():
    with pytest.raises(ValueError, match=r"loss\.delta must be finite"):
        losses.build("bco_pair", delta=float("nan"))
