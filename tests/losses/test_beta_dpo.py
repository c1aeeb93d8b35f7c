"""beta-DPO: golden trajectories with the golden draws, limits, the filter, state."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import _examples
from alignlab.losses.beta_dpo import log_keep_weights


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    """The golden rows are those kept, batch after batch; only the draw itself is replaced by the golden one."""
    case, whole = golden.case("beta_dpo", setting), golden.pairs()
    hparams = case.hparams
    loss = losses.build("beta_dpo", beta=hparams["beta"], alpha=hparams["a"], momentum=hparams["ema"], filter_ratio=0.2)
    kept, slopes = [], torch.zeros(6, dtype=golden.dtype)
    total = sum(len(selected) for selected in hparams["selected"])
    for rows, selected, step in zip(hparams["batches"], hparams["selected"], case.outputs["trajectory"], strict=True):
        batch = _examples.take(whole, torch.tensor(rows))

        def draw(log_weights, gap, count, selected=selected, step=step):
            golden.close(log_weights.exp(), step["keep_weight"])
            assert count == len(selected)
            return torch.tensor(selected)

        loss.select = draw
        out = loss(batch)
        losses_kept = out.loss * len(selected) / len(rows)
        kept.append(losses_kept[torch.tensor(selected)])
        dropped = [i for i in range(len(rows)) if i not in selected]
        assert not out.loss[dropped].any()
        slope = torch.autograd.grad(losses_kept.sum() / total, batch.chosen.logps)[0][:, 0]
        slopes.index_add_(0, torch.tensor(rows), slope)
        loss.update(loss.totals(batch))
        golden.close(loss.gap_mean, step["gap_mean"])
        golden.close(loss.gap_std, step["gap_std"])
        golden.close(out.metrics["beta_dpo/beta"][0], step["beta"])
    golden.close(torch.cat(kept), case.outputs["per_example"])
    golden.close(torch.cat(kept).mean(), case.outputs["loss"])
    golden.close(slopes, case.seq_grad["d_loss_d_logp_chosen"], absolute=1e-7)


def test_without_alpha_is_dpo(exact):
    batch = exact.pairs()
    found, expected = losses.build("beta_dpo", alpha=0.0)(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_beta_has_a_floor(exact):
    """A mean gap far below the running mean gives beta 1e-3, not a negative one."""
    loss = losses.build("beta_dpo")
    loss.gap_mean = torch.tensor(1e6, dtype=torch.float64)
    assert loss(exact.pairs()).metrics["beta_dpo/beta"][0].item() == 1e-3


def test_one_row_has_no_spread(exact):
    """The standard deviation of a single row counts as 0; nothing is NaN."""
    loss = losses.build("beta_dpo")
    row = _examples.take(exact.pairs(), torch.tensor([0]))
    assert loss(row).loss.isfinite().all()
    loss.update(loss.totals(row))
    assert loss.gap_std.item() == 0.0


def test_filter_keeps_its_share_and_its_scale(exact):
    """Of 6 rows 0.5 are dropped; the rest is scaled so that the mean over 6 is the mean over the kept 3."""
    loss, batch = losses.build("beta_dpo", filter_ratio=0.5, alpha=0.0), exact.pairs()
    out, plain = loss(batch).loss, losses.build("dpo")(batch).loss
    kept = out != 0
    assert kept.sum() == 3
    torch.testing.assert_close(out[kept], 2 * plain[kept])
    assert torch.equal(loss(batch).loss, out)
    loss.eval()
    torch.testing.assert_close(loss(batch).loss, plain)


def test_draws_follow_the_weights():
    """Rows at the running mean are kept far more often than a row five deviations off."""
    loss = losses.build("beta_dpo", filter_ratio=0.5)
    gap = torch.tensor([0.1, -0.1, 0.2, 5.0], dtype=torch.float64)
    weights = log_keep_weights(gap, torch.tensor(0.0), torch.tensor(1.0))
    drawn = torch.zeros(4)
    for step in range(200):
        loss.updates = torch.tensor(step)
        drawn[loss.select(weights, gap, 2)] += 1
    assert drawn.sum() == 400
    assert drawn[3] <= 2
    assert drawn[:3].min() > 100


def test_early_weights_do_not_underflow():
    """With a spread still near 0 all weights are 0 in float64; their logarithms still rank the rows."""
    gap = torch.tensor([1.0, 2.0, 3.0])
    weights = log_keep_weights(gap, torch.tensor(0.0), torch.tensor(1e-3))
    assert weights.exp().tolist() == [0.0, 0.0, 0.0]
    assert losses.build("beta_dpo").select(weights, gap, 1).tolist() == [0]
