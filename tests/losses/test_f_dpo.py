"""f-DPO: golden cases of every divergence, and their limits."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("name", ["f_dpo_forward_kl", "f_dpo_js", "f_dpo_alpha"])
def test_golden(golden, name, setting):
    golden.check(name, setting, losses.build("f_dpo", **golden.case(name, setting).hparams))


def test_reverse_kl_and_alpha_one_are_dpo(exact):
    batch = exact.pairs()
    expected = losses.build("dpo")(batch).loss
    for options in ({"divergence": "reverse_kl"}, {"divergence": "alpha", "alpha": 1.0}):
        torch.testing.assert_close(losses.build("f_dpo", **options)(batch).loss, expected, rtol=0, atol=1e-15)


def test_alpha_zero_is_the_forward_kl(exact):
    batch = exact.pairs()
    found = losses.build("f_dpo", divergence="alpha", alpha=0.0)(batch).loss
    assert torch.equal(found, losses.build("f_dpo", divergence="forward_kl")(batch).loss)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_log_two_at_reference(exact, at_reference, divergence):
    out = losses.build("f_dpo", divergence=divergence)(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), math.log(2), dtype=torch.float64))
