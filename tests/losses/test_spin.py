"""SPIN: golden cases; it is DPO on other data."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("spin", setting, losses.build("spin", **golden.case("spin", setting).hparams))


def test_is_dpo(exact):
    batch = exact.pairs()
    assert torch.equal(losses.build("spin", beta=0.3)(batch).loss, losses.build("dpo", beta=0.3)(batch).loss)


def test_it_says_what_can_be_known_of_who_wrote_the_rejected_completions(exact, facts):
    """Rows do not say it; how likely they are under the reference is logged, by hand -mean log p over their tokens."""
    loss = losses.build("spin")
    with pytest.warns(
        UserWarning, match="spin is DPO unless the rejected completions are samples of the run's reference"
    ):
        loss.bind(facts)
    batch = exact.pairs()
    found = loss(batch).metrics
    for name, side in (("chosen", batch.chosen), ("rejected", batch.rejected)):
        scores = [-row[mask].mean().item() for row, mask in zip(side.ref_logps, side.mask.bool(), strict=True)]
        total, count = found[f"ref_nll/{name}"]
        assert count.item() == len(scores)
        assert total.item() == pytest.approx(sum(scores))
