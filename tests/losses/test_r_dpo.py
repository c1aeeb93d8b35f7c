"""R-DPO: golden cases, the sign of the length term, and MODPO on lengths."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("r_dpo", setting, losses.build("r_dpo", **golden.case("r_dpo", setting).hparams))


def test_longer_chosen_completions_need_less_push(exact):
    """z + alpha (n_w - n_l): with n_w > n_l the loss is below DPO's, so its gradient is weaker."""
    batch = exact.pairs()
    gain = losses.build("dpo")(batch).loss - losses.build("r_dpo", alpha=0.1)(batch).loss
    longer = batch.chosen.lengths - batch.rejected.lengths
    assert torch.equal(gain.sign(), longer.sign())
    assert torch.equal(losses.build("r_dpo", alpha=0.0)(batch).loss, losses.build("dpo")(batch).loss)


def test_is_modpo_with_the_length_as_a_cost(exact):
    """MODPO with w = (1, alpha) and r = -|y|; on the simplex both weights and beta are divided by 1 + alpha."""
    batch, alpha = exact.pairs(), 0.05
    for side in (batch.chosen, batch.rejected):
        side.rewards = -side.lengths[:, None]
    weights = [1 / (1 + alpha), alpha / (1 + alpha)]
    found = losses.build("modpo", beta=0.1 / (1 + alpha), weights=weights)(batch).loss
    expected = losses.build("r_dpo", beta=0.1, alpha=alpha)(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
