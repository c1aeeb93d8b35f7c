"""RPO: golden cases, DPO as its limit, and M-DPO with a likelihood term."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("rpo", setting)
    golden.check("rpo", setting, losses.build("rpo", **case.hparams), per_example=setting == 0)


def test_golden_multi_turn(golden):
    """M-DPO with nll_coef: only assistant tokens count, in the margin and in the likelihood."""
    case = golden.case("m_dpo", 1)
    loss = losses.build("rpo", beta=case.hparams["beta"], alpha=case.hparams["nll_coef"], nll_reduction="token")
    golden.check("m_dpo", 1, loss, golden.pairs("mask_mt"), per_example=False)


def test_without_likelihood_is_dpo(exact):
    batch = exact.pairs()
    for reduction in ("example", "token", "sum"):
        found = losses.build("rpo", alpha=0.0, nll_reduction=reduction)(batch).loss
        assert torch.equal(found, losses.build("dpo")(batch).loss)


def test_is_a_weighted_sum(exact):
    batch = exact.pairs()
    parts = ["dpo", {"name": "sft", "reduction": "token"}]
    found = losses.build("weighted_sum", parts=parts, weights=[1.0, 0.5])(batch).loss
    expected = losses.build("rpo", alpha=0.5, nll_reduction="token")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
