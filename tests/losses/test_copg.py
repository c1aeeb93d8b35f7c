"""CoPG: golden cases, its square form, IPO as a special case, exchanged completions."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs


def batch_of(golden, case):
    return golden.pairs(score_chosen=case.hparams["reward_w"], score_rejected=case.hparams["reward_l"])


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("copg", setting)
    golden.check("copg", setting, losses.build("copg", beta=case.hparams["beta"]), batch_of(golden, case))


def test_is_ipo_up_to_scale(exact):
    """dR = 1/2: (beta / 2) IPO(sum) - 1 / (8 beta)."""
    batch = exact.pairs(score_chosen=[0.5] * 6, score_rejected=[0.0] * 6)
    ipo = losses.build("ipo", beta=0.2, normalise="sum")(batch).loss
    torch.testing.assert_close(losses.build("copg", beta=0.2)(batch).loss, 0.1 * ipo - 1 / 1.6, rtol=0, atol=1e-13)


def test_exchange_changes_nothing(exact):
    batch = batch_of(exact, exact.case("copg", 0))
    other = Pairs(batch.rejected, batch.chosen, score_chosen=batch.score_rejected, score_rejected=batch.score_chosen)
    torch.testing.assert_close(losses.build("copg")(batch).loss, losses.build("copg")(other).loss)


def test_zero_at_reference(exact, at_reference):
    batch = at_reference(batch_of(exact, exact.case("copg", 0)))
    assert not losses.build("copg")(batch).loss.any()
