"""SPPO: golden cases, the factor between soft and hard, and what is a probability."""

import math

import pytest
import torch
from making_lists import lists_of_ratios

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


def test_lists_by_hand():
    """beta 1/2, log-ratios 0.1, -0.2, 0 and P 0.9, 0.5, 0.1: (0.7^2 + 0.2^2 + 0.8^2) / 3; a hole's score is no P."""
    ratios = torch.tensor([[0.1, -0.2, 0.0, 3.0]], dtype=torch.float64)
    lists = lists_of_ratios(ratios, [[0.9, 0.5, 0.1, math.nan]])
    lists.scores[0, 3] = 9.0
    out = losses.build("sppo", beta=0.5, data="lists")(lists)
    assert out.loss.item() == pytest.approx((0.49 + 0.04 + 0.64) / 3, rel=1e-14)
    torch.testing.assert_close(out.rewards[:, :3], 0.5 * ratios[:, :3])


def test_scores_of_lists_must_be_probabilities():
    with pytest.raises(ValueError, match=r"the scores of a list as a probability, found values from 1 to 9"):
        losses.build("sppo", data="lists")(lists_of_ratios(torch.zeros(1, 2), [[9.0, 1.0]]))
    with pytest.raises(ValueError, match=r"loss\.probabilities: a list has no winner and loser"):
        losses.build("sppo", data="lists", probabilities="hard")


def test_probabilities_are_looked_at_when_the_rows_are_known():
    low = losses.Facts(rows=2, ranges={"score_chosen": (0.0, 1.0), "score_rejected": (-1.0, 0.5)})
    expected = r"^score_rejected of the rows must be in \[0, 1\], found -1 to 0\.5: sppo reads it as a probability"
    with pytest.raises(ValueError, match=expected):
        losses.build("sppo").bind(low)
    losses.build("sppo", probabilities="hard").bind(low)
    lists = losses.Facts(rows=2, ranges={"scores": (1.0, 9.0)})
    with pytest.raises(ValueError, match=r"^scores of the rows must be in \[0, 1\], found 1 to 9: sppo"):
        losses.build("sppo", data="lists").bind(lists)
    with pytest.raises(ValueError, match=r"^base: score_chosen of the rows must be in \[0, 1\], found 1 to 9: sppo"):
        losses.build("over_pairs", base="sppo").bind(lists)
