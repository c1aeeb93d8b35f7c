"""ORPO: golden cases, log-odds near certainty, the token mean over micro-batches."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Pairs, Scored, _examples
from alignlab.losses._odds import log1mexp, log_odds


def build(case):
    return losses.build(
        "orpo",
        beta=case.hparams["lambda"],
        nll_scope=case.hparams["nll_scope"],
        nll_reduction=case.hparams["nll_reduction"],
    )


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case, batch = golden.case("orpo", setting), golden.pairs()
    golden.prompts(batch.chosen)
    out = golden.check("orpo", setting, build(case), batch, per_example=setting == 0)
    total, count = out.metrics["log_odds_chosen"]
    golden.close(total / count, sum(case.outputs["log_odds"]) / 6)


def test_token_mean_over_all_rows(exact):
    """The NLL term of `token` is the sum over prompts and chosen completions divided by their tokens."""
    case, batch = exact.case("orpo", 1), exact.pairs()
    exact.prompts(batch.chosen)
    out = build(case)(batch)
    total, count = out.metrics["nll_loss"]
    prompts = torch.where(batch.chosen.prompt_mask, batch.chosen.prompt_logps, 0.0)
    tokens = batch.chosen.lengths.sum() + batch.chosen.prompt_mask.sum()
    assert (total / count).item() == pytest.approx(
        -(batch.chosen.sum_logps.sum() + prompts.sum()).item() / tokens.item()
    )


def test_split_into_micro_batches_weights_tokens(exact):
    """Rows 0-1 and 2-5 with the summed counts give the gradient of all 6 together."""
    loss, batch = losses.build("orpo"), exact.pairs()
    whole = torch.autograd.grad(loss(batch).loss.mean(), batch.chosen.logps)[0]
    parts = [_examples.take(batch, torch.arange(a, b)) for a, b in ((0, 2), (2, 6))]
    sums = [loss.totals(part) for part in parts]
    totals = {name: sums[0][name] + sums[1][name] for name in sums[0]}
    split = [torch.autograd.grad(loss(part, totals).loss.sum() / 6, part.chosen.logps)[0] for part in parts]
    torch.testing.assert_close(torch.cat(split), whole, rtol=0, atol=1e-15)


def test_equal_completions(exact):
    """With chosen == rejected the odds term is beta * log 2."""
    batch = exact.pairs()
    twin = Pairs(batch.chosen, batch.chosen)
    loss = losses.build("orpo", beta=0.4, nll_reduction="example")(twin).loss
    torch.testing.assert_close(loss, -batch.chosen.mean_logps + 0.4 * math.log(2.0))


@pytest.mark.parametrize("x", [-1e-12, -1e-7, -1e-3, -0.5, -math.log(2), -1.0, -30.0, -800.0])
def test_log1mexp_against_high_precision(x):
    """log(1 - e^x): against -log(-x) + x / 2 (near 0) and expm1; the gradient -1 / (e^-x - 1) is finite."""
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(value)
    assert found.item() == pytest.approx(math.log(-math.expm1(x)), rel=1e-12, abs=1e-16)
    (slope,) = torch.autograd.grad(found, value)
    expected = -1 / math.expm1(-x) if x > -700 else 0.0
    assert slope.item() == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_certain_completions_have_finite_gradients():
    """At a mean log-probability of 0 in float32 neither value nor gradient is NaN."""
    x = torch.tensor([0.0, -1e-9, -3e-8, -1e-6], requires_grad=True)
    value = log_odds(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert value[0].item() == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_rewards_are_mean_log_probabilities():
    side = Scored(torch.tensor([[-1.0, -3.0]]), torch.ones(1, 2).bool())
    out = losses.build("orpo", beta=0.5)(Pairs(side, side))
    assert out.chosen_rewards.item() == -1.0
