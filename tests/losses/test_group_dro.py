"""Group DRO: golden trajectories, C outside of the loss, the floor of weights."""

import warnings

import pytest
import torch

from alignlab import losses
from alignlab.losses import _examples


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, facts, setting):
    case, batch = golden.case("group_dro", setting), golden.pairs()
    hparams = case.hparams
    loss = losses.build(
        "group_dro",
        step_size=hparams["step_size"],
        group_size_correction=hparams.get("C", 0.0),
        min_var_weight=hparams.get("min_var_weight", 0.0),
    )
    loss.bind(facts)
    for rows, expected in zip(hparams["batches"], case.outputs["trajectory"], strict=True):
        step = _examples.take(batch, torch.tensor(rows))
        totals = loss.totals(step)
        objective = loss(step, totals).loss.mean()
        golden.close(objective, expected["loss"])
        loss.update(totals)
        golden.close(loss.weights, expected["alpha"])
    (slope,) = torch.autograd.grad(objective, step.chosen.logps)
    wanted = torch.tensor(case.seq_grad["d_loss_d_logp_chosen"], dtype=golden.dtype)[:, None] * step.chosen.mask
    golden.close(slope, wanted, absolute=1e-7)
    golden.close(loss.base(batch).loss, case.outputs["per_example"])


def test_correction_stays_out_of_the_loss(exact, facts):
    """With frozen weights C changes nothing: it moves weights, never the returned loss."""
    values = []
    for correction in (0.0, 5.0):
        loss = losses.build("group_dro", step_size=0.0, group_size_correction=correction)
        loss.bind(facts)
        values.append(loss(exact.pairs()).loss)
    assert torch.equal(*values)


def test_plain_it_says_that_it_wants_strong_regularisation(facts):
    with pytest.warns(UserWarning, match="group_dro wants strong regularisation: .*weight_decay"):
        losses.build("group_dro").bind(facts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.build("group_dro", group_size_correction=1.0).bind(facts)


def test_a_group_whose_weight_is_nearly_nothing_comes_back(facts):
    """By hand: log weights 0, -2000, -4000, and back. Their exponential is 0 in float64, from where none came back."""
    loss = losses.build("group_dro", step_size=1.0)
    loss.bind(facts)
    ones = torch.ones(3, dtype=torch.float64)
    there = torch.tensor([4000.0, 2000.0, 0.0], dtype=torch.float64)
    loss.update({"group_counts": ones, "group_losses": there})
    torch.testing.assert_close(loss.log_weights, there - 4000, rtol=0, atol=1e-9)
    loss.update({"group_counts": ones, "group_losses": 4000 - there})
    torch.testing.assert_close(loss.weights, ones / 3, rtol=0, atol=1e-9)
