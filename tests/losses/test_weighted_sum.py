"""Weighted sums: parts, their totals, their logs, and what does not combine."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Facts, Needs, _contract


def test_sum_and_logs(exact):
    batch = exact.pairs()
    loss = losses.build("weighted_sum", parts=["dpo", "hinge"], weights=[0.5, 2])
    dpo, hinge = losses.build("dpo")(batch), losses.build("hinge")(batch)
    out = loss(batch)
    torch.testing.assert_close(out.loss, 0.5 * dpo.loss + 2 * hinge.loss)
    torch.testing.assert_close(out.metrics["loss/hinge"][0], hinge.loss.detach().sum())
    torch.testing.assert_close(out.chosen_rewards, dpo.chosen_rewards)


def test_same_loss_twice_is_told_apart(exact):
    loss = losses.build("weighted_sum", parts=["sft", "sft"])
    assert {"loss/sft_0", "loss/sft_1", "nll_loss", "nll_loss/sft_1"} == loss(exact.pairs()).metrics.keys()


def test_needs_are_merged():
    loss = losses.build("weighted_sum", parts=["tdpo", "orpo", "dpo_margin", "kto_pair"])
    assert loss.needs == Needs(ref_logps=True, kl=True, columns=("margin",), coupled="step", totals_from="scores")
    assert losses.build("weighted_sum", parts=["dpo", "sft"]).needs.totals_from == "masks"


def test_state_of_parts_moves_and_is_saved(exact):
    loss = losses.build("weighted_sum", parts=["dpo", {"name": "beta_dpo"}])
    loss.update(loss.totals(exact.pairs()))
    assert loss.state_dict()["parts.1.updates"].item() == 1
    assert loss.state_dict()["parts.1.gap_mean"].item() != 0


def test_parts_are_bound():
    loss = losses.build("weighted_sum", parts=["dpo", {"name": "group_robust", "weighting": "importance"}])
    loss.bind(Facts(rows=10, groups={"x": 5, "y": 5}))
    assert loss.parts[1].group_names == ("x", "y")
    assert _contract.check(loss) == []


def test_refusals():
    with pytest.raises(ValueError, match=r"loss: parts must read the same kind of data|loss\.parts must read"):
        losses.build("weighted_sum", parts=["dpo", "kto"])
    with pytest.raises(ValueError, match=r"loss\.parts must be coupled over the same rows"):
        losses.build("weighted_sum", parts=["aot", "orpo"])
    with pytest.raises(ValueError, match=r"loss\.weights must be as many as the 2 parts, found 1"):
        losses.build("weighted_sum", parts=["dpo", "ipo"], weights=[1.0])
    with pytest.raises(ValueError, match=r"loss\.parts must hold at least one loss"):
        losses.build("weighted_sum", parts=[])
    with pytest.raises(ValueError, match=r"loss\.parts\[1\]\.beta must be"):
        losses.build("weighted_sum", parts=["dpo", {"name": "ipo", "beta": -1}])
