"""Formulas of IFT and VAA: golden cases and limits."""

import pytest
import torch

from alignlab.losses._beyond import ift, vaa_step


@pytest.mark.parametrize("setting", [0, 1])
def test_ift_golden(golden, setting):
    case, (logps, mask) = golden.case("ift", setting), golden.mixed()
    rows, weights = ift(logps, mask, **case.hparams)
    golden.close(rows, case.outputs["per_example"])
    golden.close(rows.mean(), case.outputs["loss"])
    for found, used, expected in zip(weights, mask, case.outputs["weights"], strict=True):
        golden.close(found[used], expected)
        assert not found[~used].any()


def test_ift_weights(exact):
    """Weights sum to the number of tokens; detached ones leave -w_t / T as the gradient."""
    logps, mask = exact.mixed()
    logps.requires_grad_()
    rows, weights = ift(logps, mask, detach_weights=True)
    torch.testing.assert_close(weights.sum(-1), mask.sum(-1).double())
    (slope,) = torch.autograd.grad(rows.sum(), logps)
    torch.testing.assert_close(slope, -weights / mask.sum(-1, keepdim=True))
    flowing, _ = ift(logps, mask)
    assert (torch.autograd.grad(flowing.sum(), logps)[0] - slope).abs().max() > 1e-3


@pytest.mark.parametrize("setting", [0, 1])
def test_vaa_golden(exact, setting):
    case = exact.case("vaa", setting)
    hparams, p, found = case.hparams, case.hparams["p0"], []
    for group, loss in hparams["events"]:
        p = vaa_step(p, group, loss, hparams["step_size"], hparams["p_min"], hparams["p_max"])
        found.append(p)
    assert found == pytest.approx(case.outputs["p"], abs=1e-9)


def test_vaa_without_steps_is_balanced():
    assert vaa_step(0.5, 1, 3.0, step_size=0.0) == 0.5
