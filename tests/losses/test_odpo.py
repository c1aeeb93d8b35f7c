"""ODPO: golden cases, limits, and scores that do not order the pair."""

import pytest
import torch

from alignlab import losses


def batch_of(golden, case):
    return golden.pairs(score_chosen=case.hparams["score_w"], score_rejected=case.hparams["score_l"])


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("odpo", setting)
    loss = losses.build("odpo", beta=case.hparams["beta"], alpha=case.hparams["alpha"])
    golden.check("odpo", setting, loss, batch_of(golden, case))


def test_limits_are_dpo(exact):
    """alpha = 0, or gaps of 1, whose logarithm is 0."""
    batch = batch_of(exact, exact.case("odpo", 0))
    expected = losses.build("dpo")(batch).loss
    torch.testing.assert_close(losses.build("odpo", alpha=0.0)(batch).loss, expected, rtol=0, atol=1e-15)
    batch.score_chosen = batch.score_rejected + 1
    torch.testing.assert_close(losses.build("odpo")(batch).loss, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("chosen", [1.0, 0.5, float("nan")])
def test_scores_must_order_the_pair(exact, chosen):
    batch = exact.pairs(score_chosen=[2.0, chosen, 2.0, 2.0, 2.0, 2.0], score_rejected=[1.0] * 6)
    with pytest.raises(ValueError, match=rf"score_chosen > score_rejected in every row, found {chosen:g} and 1"):
        losses.build("odpo")(batch)


def test_gaps_are_looked_at_when_the_rows_are_known():
    losses.build("odpo").bind(losses.Facts(rows=2, ranges={"score_gap": (0.25, 3.0)}))
    with pytest.raises(ValueError, match=r"score_chosen > score_rejected in every row, found a difference of 0$"):
        losses.build("odpo").bind(losses.Facts(rows=2, ranges={"score_gap": (0.0, 3.0)}))
