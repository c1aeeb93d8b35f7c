"""SLiC-HF: golden cases, its limit, and the gold target."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    hparams = dict(golden.case("slic_hf", setting).hparams)
    hparams["nll_weight"] = hparams.pop("lambda")
    golden.check("slic_hf", setting, losses.build("slic_hf", **hparams))


def test_without_likelihood_is_a_reference_free_hinge(exact):
    batch = exact.pairs()
    found = losses.build("slic_hf", nll_weight=0.0)(batch).loss
    assert torch.equal(found, torch.relu(1 - batch.chosen.sum_logps + batch.rejected.sum_logps))


def test_gold_target(exact):
    """The likelihood term is on the gold completion: no chosen token moves by it."""
    batch = exact.pairs()
    batch.gold = exact.scored("gold")
    out = losses.build("slic_hf", delta=0.0, nll_weight=1.0, target="gold", nll_reduction="sum")(batch)
    hinge = torch.relu(batch.rejected.sum_logps - batch.chosen.sum_logps)
    torch.testing.assert_close(out.loss, hinge - batch.gold.sum_logps)
    with pytest.raises(ValueError, match="needs a third completion"):
        losses.build("slic_hf", target="gold")(exact.pairs())
