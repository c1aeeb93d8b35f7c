"""SPIN: golden cases; it is DPO on other data."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("spin", setting, losses.build("spin", **golden.case("spin", setting).hparams))


def test_is_dpo(exact):
    batch = exact.pairs()
    assert torch.equal(losses.build("spin", beta=0.3)(batch).loss, losses.build("dpo", beta=0.3)(batch).loss)
