"""NCA: golden cases, its value at the reference, and BCO-pair."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("nca_pair", setting, losses.build("nca", **golden.case("nca_pair", setting).hparams))


def test_two_log_two_at_reference(exact, at_reference):
    out = losses.build("nca")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 2 * math.log(2), dtype=torch.float64))


def test_rejected_side_alone_lowers_the_rejected(exact):
    """The slope on L_l is +0.5 beta s(beta b), on L_w -beta s(-beta a) + 0.5 beta s(beta a)."""
    batch, beta = exact.pairs(), 0.3
    out = losses.build("nca", beta=beta)(batch)
    chosen, rejected = torch.autograd.grad(out.loss.sum(), [batch.chosen.logps, batch.rejected.logps])
    a, b = beta * batch.chosen.log_ratios, beta * batch.rejected.log_ratios
    torch.testing.assert_close(rejected[:, 0], 0.5 * beta * torch.sigmoid(b))
    torch.testing.assert_close(chosen[:, 0], -beta * torch.sigmoid(-a) + 0.5 * beta * torch.sigmoid(a))
