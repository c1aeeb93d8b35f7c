"""DPO-positive: golden cases, limits, and its gradient below the reference."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("dpop", setting)
    loss = losses.build("dpop", beta=case.hparams["beta"], penalty=case.hparams["lambda"])
    golden.check("dpop", setting, loss)


def test_without_penalty_is_dpo(exact):
    batch = exact.pairs()
    found, expected = losses.build("dpop", beta=0.1, penalty=0.0)(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_gradient_below_the_reference(exact):
    """Where a < 0 the slope on L_w is (1 + penalty) times minus the slope on L_l; elsewhere they cancel."""
    batch = exact.pairs()
    out = losses.build("dpop", penalty=5.0)(batch)
    chosen, rejected = torch.autograd.grad(out.loss.sum(), [batch.chosen.logps, batch.rejected.logps])
    below = batch.chosen.log_ratios < 0
    assert below.tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(chosen[:, 0], -rejected[:, 0] * torch.where(below, 6.0, 1.0))
    assert out.metrics["dpop/chosen_below_reference"] == (2.0, 6.0)
