"""TDPO: golden cases down to the logits, the stop-gradient, and its limits."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("variant", [1, 2])
def test_golden(golden, variant, setting):
    name = f"tdpo{variant}"
    case, (batch, logits) = golden.case(name, setting), golden.distribution_pairs()
    out = losses.build("tdpo", variant=variant, **case.hparams)(batch)
    golden.close(out.loss, case.outputs["per_example"])
    golden.close(out.loss.mean(), case.outputs["loss"])
    golden.close(batch.chosen.sum_kl, case.outputs["kl_w"])
    golden.close(batch.rejected.sum_kl, case.outputs["kl_l"])
    golden.close_logit_gradients(out.loss.mean(), logits, case.logit_grad)


def test_variant_2_without_alpha_is_dpo(exact):
    batch, _ = exact.distribution_pairs()
    found, expected = losses.build("tdpo", alpha=0.0)(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_variants_agree_in_value_and_not_in_gradient(exact):
    """alpha = 1: equal values; variant 2 stops the gradient through K_w, variant 1 does not."""
    batch, logits = exact.distribution_pairs()
    one, two = losses.build("tdpo", variant=1)(batch).loss, losses.build("tdpo", alpha=1.0)(batch).loss
    torch.testing.assert_close(one, two, rtol=0, atol=1e-15)
    slopes = [torch.autograd.grad(loss.sum(), logits["chosen"][0], retain_graph=True)[0] for loss in (one, two)]
    assert (slopes[0] - slopes[1]).abs().max() > 1e-3
    slopes = [torch.autograd.grad(loss.sum(), logits["rejected"][0], retain_graph=True)[0] for loss in (one, two)]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_kl_of_the_chosen_has_no_gradient_in_variant_2(exact):
    batch, _ = exact.distribution_pairs()
    for side in (batch.chosen, batch.rejected):
        side.kl = side.kl.detach().requires_grad_()
    for variant, chosen_moves in ((1, True), (2, False)):
        loss = losses.build("tdpo", variant=variant)(batch).loss.sum()
        chosen, rejected = torch.autograd.grad(
            loss, [batch.chosen.kl, batch.rejected.kl], allow_unused=True, materialize_grads=True, retain_graph=True
        )
        assert bool(chosen.any()) == chosen_moves
        assert rejected.any()


def test_log_two_at_reference(exact, at_reference):
    batch, _ = exact.distribution_pairs()
    at_reference(batch)
    for side in (batch.chosen, batch.rejected):
        side.kl = torch.zeros_like(side.kl)
    for variant in (1, 2):
        out = losses.build("tdpo", variant=variant)(batch)
        torch.testing.assert_close(out.loss, torch.full((6,), math.log(2.0), dtype=torch.float64))


def test_rewards_and_metrics(exact):
    """Reported are beta (log-ratio + K), and the summed divergences."""
    batch, _ = exact.distribution_pairs()
    out = losses.build("tdpo", beta=0.2)(batch)
    torch.testing.assert_close(out.chosen_rewards, 0.2 * (batch.chosen.log_ratios + batch.chosen.sum_kl).detach())
    kl = exact.case("tdpo2", 0).outputs
    for metric, expected in (
        ("chosen", sum(kl["kl_w"])),
        ("rejected", sum(kl["kl_l"])),
        ("margins", sum(kl["kl_w"]) - sum(kl["kl_l"])),
    ):
        total, count = out.metrics[f"position_kl/{metric}"]
        assert (total.item(), count.item()) == (pytest.approx(expected), 6)
