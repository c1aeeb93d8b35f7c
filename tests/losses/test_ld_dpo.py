"""LD-DPO: golden cases, its limits, and positions counted on the mask."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs, Scored


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("ld_dpo", setting, losses.build("ld_dpo", **golden.case("ld_dpo", setting).hparams))


def test_whole_tail_is_dpo(exact):
    batch = exact.pairs()
    found, expected = losses.build("ld_dpo", alpha=1.0)(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_tail_by_hand():
    """Chosen log-ratios 1, 2, 4 (its second position does not count), rejected 3: the shorter has 1 token.

    The chosen side is 1 + alpha * 4 = 3 at alpha .5, the rejected 3: z = 0.
    """
    chosen = Scored(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, False, True]]), torch.zeros(1, 3))
    rejected = Scored(torch.tensor([[3.0]]), torch.tensor([[True]]), torch.zeros(1, 1))
    out = losses.build("ld_dpo", beta=1.0)(Pairs(chosen, rejected))
    assert out.loss.item() == pytest.approx(math.log(2))
    assert (out.chosen_rewards.item(), out.rejected_rewards.item()) == (3.0, 3.0)
