"""MODPO: golden cases, limits, implicit rewards and what the weights may be."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Facts


def with_rewards(golden, chosen, rejected):
    batch = golden.pairs()
    batch.chosen.rewards = torch.tensor(chosen, dtype=golden.dtype)
    batch.rejected.rewards = torch.tensor(rejected, dtype=golden.dtype)
    return batch


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("modpo", setting)
    batch = with_rewards(golden, case.hparams["margin_w"], case.hparams["margin_l"])
    loss = losses.build("modpo", beta=case.hparams["beta"], weights=case.hparams["w"])
    out = golden.check("modpo", setting, loss, batch)
    golden.close(out.chosen_rewards, case.outputs["reward_w"])
    golden.close(out.rejected_rewards, case.outputs["reward_l"])


def test_one_objective_is_dpo(exact):
    batch = with_rewards(exact, [[5.0]] * 6, [[-3.0]] * 6)
    found, expected = losses.build("modpo", weights=[1.0, 0.0])(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(losses.build("modpo", weights=[1.0])(exact.pairs()).loss, expected, rtol=0, atol=1e-15)


def test_common_margins_cancel(exact):
    """Rewards equal for both completions leave DPO with beta / w_1."""
    batch = with_rewards(exact, [[float(i)] for i in range(6)], [[float(i)] for i in range(6)])
    found = losses.build("modpo", beta=0.1, weights=[0.25, 0.75])(batch).loss
    torch.testing.assert_close(found, losses.build("dpo", beta=0.4)(batch).loss, rtol=0, atol=1e-14)


def test_implicit_rewards_carry_beta_once(exact):
    """r = beta * (scorer - reference): a scorer equal to the policy with w = (.5, .5) leaves margin beta * h."""
    batch = exact.pairs()
    for side in (batch.chosen, batch.rejected):
        side.scorers = {"helpful": side.logps.detach().clone()}
    loss = losses.build("modpo", beta=0.1, weights=[0.5, 0.5], scorers=["helpful"])
    assert loss.needs.scorers == ("helpful",)
    assert loss.needs.rewards == 0
    torch.testing.assert_close(loss(batch).loss, losses.build("dpo", beta=0.1)(batch).loss, rtol=0, atol=1e-14)


def test_explicit_and_implicit_together(exact):
    """Explicit columns come first in the weights, scorers after them."""
    batch = with_rewards(exact, [[1.0]] * 6, [[0.0]] * 6)
    for side in (batch.chosen, batch.rejected):
        side.scorers = {"s": side.ref_logps.clone()}
    found = losses.build("modpo", weights=[0.5, 0.3, 0.2], scorers=["s"])(batch)
    h = batch.chosen.log_ratios - batch.rejected.log_ratios
    expected = torch.nn.functional.softplus(-(0.1 * h - 0.3) / 0.5)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-14)
    assert found.metrics["objective/reward_1/agreement"] == (6.0, 6.0)
    assert found.metrics["objective/s/margins"][0] == 0.0


def test_base_other_than_dpo(exact):
    """IPO on the bracket: with z' = (z - w_2 dr) / w_1, its loss is (z' / beta - 1 / (2 beta))^2."""
    batch = with_rewards(exact, [[1.0]] * 6, [[0.5]] * 6)
    base = {"name": "ipo", "beta": 0.2, "normalise": "sum"}
    found = losses.build("modpo", weights=[0.8, 0.2], base=base)(batch).loss
    z = (0.2 * (batch.chosen.log_ratios - batch.rejected.log_ratios) - 0.1) / 0.8
    torch.testing.assert_close(found, (z / 0.2 - 2.5) ** 2)


def test_missing_scorer_is_named(exact):
    with pytest.raises(ValueError, match="needs the scores of 'helpful'"):
        losses.build("modpo", scorers=["helpful"])(exact.pairs())


@pytest.mark.parametrize("weights", [[0.5, 0.4], [0.0, 1.0], [], [1.5, -0.5]])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match=r"loss\.weights"):
        losses.build("modpo", weights=weights)


def test_bind_checks_the_columns():
    loss = losses.build("modpo", weights=[0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"leave 2 explicit rewards, but the rows carry 1: \['length'\]"):
        loss.bind(Facts(rows=1, objectives=("length",)))
    loss.bind(Facts(rows=1, objectives=("length", "tone")))
    assert loss.objectives == ("length", "tone")


@pytest.mark.parametrize("base", ["dpo", "simpo", "alphapo", "sigmoid_norm", "ipo"])
def test_one_objective_is_the_base_with_its_rewards(exact, base):
    """Over a base with a margin of its own the rewards were DPO's, and so was what the log said of them."""
    batch = exact.pairs()
    found, expected = losses.build("modpo", base=losses.build(base), weights=[1.0])(batch), losses.build(base)(batch)
    for name in ("loss", "chosen_rewards", "rejected_rewards"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-15)
