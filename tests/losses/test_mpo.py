"""MPO: golden cases and its limit."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("mpo", setting, losses.build("mpo", **golden.case("mpo", setting).hparams), per_example=False)


def test_first_part_alone_is_dpo(exact):
    batch = exact.pairs()
    found, expected = losses.build("mpo", weights=[1, 0, 0])(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_parts_are_logged(exact):
    metrics = losses.build("mpo")(exact.pairs()).metrics
    assert {"loss/dpo", "loss/bcopair", "loss/sft", "nll_loss"} == metrics.keys()
