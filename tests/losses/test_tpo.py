"""TPO: golden cases, limits, and the gold completion."""

import pytest
import torch

from alignlab import losses


def with_gold(golden):
    batch = golden.pairs()
    batch.gold = golden.scored("gold")
    return batch


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("name", ["tpo", "tpo_l"])
def test_golden(golden, name, setting):
    hparams = dict(golden.case(name, setting).hparams)
    hparams["length_normalised"] = hparams.pop("length_norm", False)
    exact_rows = hparams["nll_reduction"] == "example"
    golden.check(name, setting, losses.build("tpo", **hparams), with_gold(golden), per_example=exact_rows)


def test_limits(exact):
    """alpha 0: CPO without its likelihood; length-normalised: SimPO."""
    batch = with_gold(exact)
    found = losses.build("tpo", alpha=0.0)(batch).loss
    torch.testing.assert_close(found, losses.build("cpo", alpha=0.0)(batch).loss, rtol=0, atol=1e-15)
    found = losses.build("tpo", alpha=0.0, length_normalised=True, beta=2.0, gamma=0.5)(batch).loss
    torch.testing.assert_close(found, losses.build("simpo", gamma=0.5)(batch).loss, rtol=0, atol=1e-15)


def test_likelihood_is_of_the_gold_completion(exact):
    batch = with_gold(exact)
    out = losses.build("tpo", alpha=1.0, nll_reduction="sum")(batch)
    (slope,) = torch.autograd.grad(out.loss.sum(), batch.gold.logps)
    assert torch.equal(slope, -batch.gold.mask.double())
    total, count = out.metrics["nll_loss"]
    torch.testing.assert_close(total / count, -batch.gold.sum_logps.mean())


def test_gold_is_needed(exact):
    assert losses.build("tpo").needs.gold
    with pytest.raises(ValueError, match="needs a third completion"):
        losses.build("tpo")(exact.pairs())
