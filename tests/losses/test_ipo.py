"""IPO: golden cases, values by hand and at the reference."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs, Scored


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("ipo", setting, losses.build("ipo", **golden.case("ipo", setting).hparams))


def test_value_by_hand():
    """a = -2 over 2 tokens, b = -3 over 1 token, beta .25 (target 2): sum (1 - 2)^2 = 1, mean (-1 + 3 - 2)^2 = 0."""
    chosen = Scored(torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2).bool(), torch.zeros(1, 2))
    rejected = Scored(torch.tensor([[-3.0, 0.0]]), torch.tensor([[True, False]]), torch.zeros(1, 2))
    batch = Pairs(chosen, rejected)
    assert losses.build("ipo", beta=0.25, normalise="sum")(batch).loss.item() == 1.0
    assert losses.build("ipo", beta=0.25, normalise="mean")(batch).loss.item() == 0.0


@pytest.mark.parametrize("normalise", ["mean", "sum"])
def test_at_reference(exact, at_reference, normalise):
    """h = 0: the loss is 1 / (4 beta^2), finite although every log-ratio is 0."""
    out = losses.build("ipo", beta=0.3, normalise=normalise)(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 1 / (4 * 0.09), dtype=torch.float64))


def test_sum_rule_of_gradients(exact):
    """The summed form depends on h only: dL/dL_w = -dL/dL_l, and both are 2 (h - 1 / (2 beta))."""
    batch, loss = exact.pairs(), losses.build("ipo", beta=0.25, normalise="sum")
    chosen, rejected = torch.autograd.grad(loss(batch).loss.sum(), [batch.chosen.logps, batch.rejected.logps])
    h = (batch.chosen.log_ratios - batch.rejected.log_ratios).detach()
    torch.testing.assert_close(chosen[:, 0], 2 * (h - 2.0))
    torch.testing.assert_close(rejected[:, 0], -2 * (h - 2.0))
