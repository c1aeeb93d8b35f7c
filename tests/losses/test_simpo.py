"""SimPO: golden cases and its value without a preference."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("simpo", setting, losses.build("simpo", **golden.case("simpo", setting).hparams))


def test_softplus_of_gamma_without_a_preference(exact):
    batch = exact.pairs()
    batch.rejected = batch.chosen
    out = losses.build("simpo", gamma=0.7)(batch)
    torch.testing.assert_close(out.loss, torch.full((6,), math.log1p(math.exp(0.7)), dtype=torch.float64))
    torch.testing.assert_close(out.chosen_rewards, 2.0 * batch.chosen.mean_logps.detach())


def test_without_gamma_is_the_sigmoid_of_means(exact):
    batch = exact.pairs()
    z = 2.0 * (batch.chosen.mean_logps - batch.rejected.mean_logps)
    found = losses.build("simpo", gamma=0.0)(batch).loss
    torch.testing.assert_close(found, torch.nn.functional.softplus(-z), rtol=0, atol=1e-14)
