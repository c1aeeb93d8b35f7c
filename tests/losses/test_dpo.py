"""DPO: golden cases, a value by hand, limits and identities."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs, Scored

SETTINGS = [0, 1]


def pair(chosen, rejected, ref_chosen=0.0, ref_rejected=0.0):
    """Returns one pair of one-token completions with these log-probabilities."""

    def side(logp, ref):
        return Scored(torch.tensor([[logp]]).requires_grad_(), torch.ones(1, 1).bool(), torch.tensor([[ref]]))

    return Pairs(side(chosen, ref_chosen), side(rejected, ref_rejected))


@pytest.mark.parametrize("setting", SETTINGS)
def test_golden(golden, setting):
    golden.check("dpo", setting, losses.build("dpo", **golden.case("dpo", setting).hparams))


@pytest.mark.parametrize("setting", SETTINGS)
def test_golden_conservative(golden, setting):
    golden.check("cdpo", setting, losses.build("dpo", **golden.case("cdpo", setting).hparams))


@pytest.mark.parametrize("setting", SETTINGS)
def test_golden_robust(golden, setting):
    golden.check(
        "robust_dpo", setting, losses.build("dpo", smoothing="robust", **golden.case("robust_dpo", setting).hparams)
    )


def test_golden_multi_turn(golden):
    """M-DPO: DPO over the assistant's tokens only, which the mask says."""
    golden.check("m_dpo", 0, losses.build("dpo", **golden.case("m_dpo", 0).hparams), golden.pairs("mask_mt"))


def test_value_by_hand():
    """a = -1 - -2 = 1, b = -3 - -1 = -2, h = 3, beta .5: z = 1.5, loss = log(1 + exp(-1.5)), rewards .5 and -1."""
    out = losses.build("dpo", beta=0.5)(pair(-1.0, -3.0, -2.0, -1.0))
    assert out.loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6)
    assert (out.chosen_rewards.item(), out.rejected_rewards.item()) == (0.5, -1.0)


def test_log_two_at_reference(exact, at_reference):
    """At policy == reference z = 0: the loss is log 2 and the gradient on L_w is -beta / 2, on L_l + beta / 2."""
    batch = at_reference(exact.pairs())
    for options in ({}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "smoothing": "robust"}):
        out = losses.build("dpo", beta=0.3, **options)(batch)
        torch.testing.assert_close(out.loss, torch.full((6,), math.log(2.0), dtype=torch.float64))
    chosen, rejected = torch.autograd.grad(losses.build("dpo", beta=0.3)(batch).loss.sum(), _sides(batch))
    assert chosen[batch.chosen.mask].unique().tolist() == pytest.approx([-0.15])
    assert rejected[batch.rejected.mask].unique().tolist() == pytest.approx([0.15])


def _sides(batch):
    return [batch.chosen.logps, batch.rejected.logps]


def test_smoothing_adds_a_linear_term(exact):
    """conservative = DPO + e z; robust = DPO - e z / (1 - 2 e)."""
    batch, e, beta = exact.pairs(), 0.2, 0.1
    z = beta * (batch.chosen.log_ratios - batch.rejected.log_ratios)
    plain = losses.build("dpo", beta=beta)(batch).loss
    conservative = losses.build("dpo", beta=beta, label_smoothing=e)(batch).loss
    robust = losses.build("dpo", beta=beta, label_smoothing=e, smoothing="robust")(batch).loss
    torch.testing.assert_close(conservative, plain + e * z, rtol=0, atol=1e-14)
    torch.testing.assert_close(robust, plain - e * z / (1 - 2 * e), rtol=0, atol=1e-14)


def test_conservative_minimum():
    """The conservative minimum lies at sigmoid(z) = 1 - e, with the entropy of e as its value."""
    e = 0.2
    z = torch.tensor([math.log((1 - e) / e)], dtype=torch.float64, requires_grad=True)
    value = losses.build("dpo", label_smoothing=e).of_margin(z)
    assert value.item() == pytest.approx(-e * math.log(e) - (1 - e) * math.log(1 - e), abs=1e-12)
    (slope,) = torch.autograd.grad(value, z)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)


def test_swap_of_labels(exact):
    """With chosen and rejected exchanged, smoothing e acts as 1 - e: L(e) - L_swapped(e) = -(1 - 2 e) z."""
    batch, loss = exact.pairs(), losses.build("dpo", beta=0.1, label_smoothing=0.1)
    z = loss.margin(batch)
    swapped = Pairs(batch.rejected, batch.chosen)
    torch.testing.assert_close(loss(batch).loss - loss(swapped).loss, -0.8 * z, rtol=0, atol=1e-13)


def test_reference_and_policy_shift_together(exact):
    """Adding c to both policy and reference of one sequence changes nothing."""
    batch, loss = exact.pairs(), losses.build("dpo")
    before = loss(batch).loss
    with torch.no_grad():
        batch.chosen.logps[:, 0] += 3.0
        batch.chosen.ref_logps[:, 0] += 3.0
    torch.testing.assert_close(loss(batch).loss, before, rtol=0, atol=1e-13)


def test_far_margins_do_not_overflow():
    """z = -10^4: the loss is -z = 10^4 with slope -beta, not inf; z = 10^4: 0."""
    loss, batch = losses.build("dpo", beta=1.0), pair(-10_000.0, 0.0)
    value = loss(batch).loss
    assert value.item() == 10_000.0
    assert torch.autograd.grad(value, batch.chosen.logps)[0].item() == -1.0
    assert loss(pair(0.0, -10_000.0)).loss.item() == 0.0


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"beta": float("nan")}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}]
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"loss\.{name} must be"):
        losses.build("dpo", **options)
