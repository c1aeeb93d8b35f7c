"""CPO: golden cases, values without a preference, and TPO without its likelihood."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("cpo", setting, losses.build("cpo", **golden.case("cpo", setting).hparams), per_example=setting == 1)


def test_log_two_without_a_preference(exact):
    batch = exact.pairs()
    batch.rejected = batch.chosen
    out = losses.build("cpo", alpha=0.0)(batch)
    torch.testing.assert_close(out.loss, torch.full((6,), math.log(2), dtype=torch.float64))


def test_needs_no_reference():
    assert not losses.build("cpo").needs.reference
