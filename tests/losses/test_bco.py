"""BCO: golden trajectory of its running mean, its limit, state, and evaluation."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import _examples


def steps(golden, case):
    """Yields the labelled rows of each golden batch: its chosen completions, then its rejected ones."""
    whole = golden.labelled()
    for rows in case.hparams["batches"]:
        yield _examples.take(whole, torch.tensor([*rows, *(row + 6 for row in rows)])), rows


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    """delta takes in the rewards of a step before it is used; losses and gradients are over all 12 rows."""
    case = golden.case("bco", setting)
    loss = losses.build("bco", beta=case.hparams["beta"])
    found, slopes = torch.zeros(12, dtype=golden.dtype), torch.zeros(12, dtype=golden.dtype)
    for (batch, rows), delta in zip(steps(golden, case), case.outputs["delta"], strict=True):
        out = loss(batch)
        places = torch.tensor([*rows, *(row + 6 for row in rows)])
        found[places] = out.loss.detach()
        slopes[places] = torch.autograd.grad(out.loss.sum() / 12, batch.completions.logps)[0][:, 0]
        loss.update(loss.totals(batch))
        golden.close(loss.delta, delta)
        golden.close(out.metrics["delta"][0], delta)
    order = [place for rows in case.hparams["batches"] for place in rows]
    golden.close(found.mean(), case.outputs["loss"])
    golden.close(found.sort().values, sorted(case.outputs["per_example"]))
    expected = [*case.seq_grad["d_loss_d_logp_chosen"], *case.seq_grad["d_loss_d_logp_rejected"]]
    golden.close(slopes, expected, absolute=1e-7)
    assert sorted(order) == list(range(6))


def test_zero_shift_has_the_terms_of_bco_pair(exact, at_reference):
    """At policy == reference delta is 0 and every row log 2: two rows make bco_pair's 2 log 2."""
    out = losses.build("bco")(at_reference(exact.labelled()))
    torch.testing.assert_close(out.loss, torch.full((12,), math.log(2), dtype=torch.float64))
    batch = exact.labelled()
    loss = losses.build("bco").eval()
    rows = loss(batch).loss
    torch.testing.assert_close(rows[:6] + rows[6:], losses.build("bco_pair")(exact.pairs()).loss)


def test_evaluation_uses_the_mean_of_training(exact):
    batch = exact.labelled()
    loss = losses.build("bco")
    loss.update(loss.totals(batch))
    delta = loss.delta.item()
    loss.eval()
    out = loss(_examples.take(batch, torch.arange(3)))
    assert out.metrics["delta"][0].item() == pytest.approx(delta)
    assert loss.delta.item() == delta
    restored = losses.build("bco")
    restored.load_state_dict(loss.state_dict())
    assert restored.delta.item() == delta
