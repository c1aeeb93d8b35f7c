"""SPPO: golden cases, the factor between soft and hard, and what is a probability."""

import pytest
import torch

from alignlab import losses


def batch_of(golden, case):
    return golden.pairs(score_chosen=case.hparams["p_w"], score_rejected=case.hparams["p_l"])


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("sppo", setting)
    golden.check("sppo", setting, losses.build("sppo", beta=case.hparams["beta"]), batch_of(golden, case))


@pytest.mark.parametrize("setting", [0, 1])
def test_golden_hard(golden, setting):
    loss = losses.build("sppo", probabilities="hard", **golden.case("sppo_hard", setting).hparams)
    golden.check("sppo_hard", setting, loss)


def test_hard_is_twice_soft_with_certain_labels(exact):
    batch = batch_of(exact, exact.case("sppo", 1))
    assert set(batch.score_chosen.tolist()) == {1.0}
    found = losses.build("sppo", beta=0.3, probabilities="hard")(batch).loss
    torch.testing.assert_close(found, 2 * losses.build("sppo", beta=0.3)(batch).loss)


def test_at_reference(exact, at_reference):
    out = losses.build("sppo", beta=0.1, probabilities="hard")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 0.5 / 0.01, dtype=torch.float64))


def test_scores_must_be_probabilities(exact):
    batch = exact.pairs(score_chosen=[1.5] * 6, score_rejected=[0.0] * 6)
    with pytest.raises(ValueError, match=r"score_chosen as a probability, found values from 1\.5 to 1\.5"):
        losses.build("sppo")(batch)
