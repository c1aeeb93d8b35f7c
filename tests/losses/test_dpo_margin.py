"""DPO with a margin: golden cases, the base as its limit, and any base."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("dpo_margin", setting)
    batch = golden.pairs(margin=case.hparams["margin"])
    golden.check("dpo_margin", setting, losses.build("dpo_margin", beta=case.hparams["beta"]), batch)


@pytest.mark.parametrize("base", ["dpo", "ipo", "hinge", "exo", "discopop", "sigmoid_norm", "simpo"])
def test_no_margin_is_the_base(exact, base):
    batch = exact.pairs(margin=[0.0] * 6)
    found, expected = losses.build("dpo_margin", base=base)(batch), losses.build(base)(batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.chosen_rewards, expected.chosen_rewards)


def test_hinge_with_margin_by_hand(exact):
    """max(0, 1 - (z - m)) with m = 2."""
    batch = exact.pairs(margin=[2.0] * 6)
    z = 0.1 * (batch.chosen.log_ratios - batch.rejected.log_ratios)
    found = losses.build("dpo_margin", base={"name": "hinge", "beta": 0.1})(batch).loss
    torch.testing.assert_close(found, torch.relu(3 - z))


def test_refusals(exact):
    for base in ("kto", "rpo", "cpo"):
        with pytest.raises(ValueError, match=rf"loss\.base: {base.upper()} is no function of the margin alone"):
            losses.build("dpo_margin", base=base)
    with pytest.raises(ValueError, match=r"loss\.beta belongs to the base"):
        losses.build("dpo_margin", beta=0.1, base="hinge")
    with pytest.raises(ValueError, match="needs the column 'margin'"):
        losses.build("dpo_margin")(exact.pairs())
