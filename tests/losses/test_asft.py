"""ASFT: golden cases, and the odds form that it stands for."""

import pytest
import torch

from alignlab import losses
from alignlab.losses._odds import log_odds


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("asft", setting, losses.build("asft", beta=golden.case("asft", setting).hparams["lambda"]))


def test_is_the_odds_form(exact):
    """-Lbar_w + beta (-log sigmoid(lo_w) - log sigmoid(-lo_l)), since sigmoid(lo) = p."""
    batch, softplus = exact.pairs(), torch.nn.functional.softplus
    chosen, rejected = batch.chosen.mean_logps, batch.rejected.mean_logps
    expected = -chosen + 0.3 * (softplus(-log_odds(chosen)) + softplus(log_odds(rejected)))
    found = losses.build("asft", beta=0.3)(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
