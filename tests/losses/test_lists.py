"""What holds for several losses of lists: two completions are DPO, and sums of lists."""

import pytest
import torch
from making_lists import gradient, lists_of_ratios, pair_of
from pretend import DEVICE, accelerator

from alignlab import losses
from alignlab.losses import _examples

DPO_OF_TWO = [
    {"name": "plackett_luce", "beta": 0.3},
    {"name": "softmax_dpo", "beta": 0.3},
    {"name": "infonca", "beta": 0.3, "alpha": 0.0},
    {"name": "over_pairs", "base": {"name": "dpo", "beta": 0.3}},
]


@pytest.mark.parametrize("spec", DPO_OF_TWO, ids=lambda spec: spec["name"])
def test_two_completions_are_dpo(spec):
    """Values to one rounding of a number below 2 (2.2e-16), gradients below 1 likewise."""
    s = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lists = lists_of_ratios(s, [[2.0, 1.0]] * 200)
    expected = losses.build("dpo", beta=0.3)(pair_of(lists, 0, 1))
    found = losses.build(spec)(lists)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=2.3e-16)
    slopes = gradient(found.loss, lists), gradient(expected.loss, lists)
    torch.testing.assert_close(*slopes, rtol=0, atol=2.3e-16)
    torch.testing.assert_close(found.rewards, torch.stack([expected.chosen_rewards, expected.rejected_rewards], 1))


def test_nca_of_two_is_nca_of_the_pair():
    lists = lists_of_ratios(torch.tensor([[0.4, -1.3], [-2.0, 1.0]], dtype=torch.float64), [[2.0, 1.0]] * 2)
    expected = losses.build("nca", beta=0.3)(pair_of(lists, 0, 1)).loss
    found = losses.build("nca", beta=0.3, data="lists", alpha=0.0)(lists).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=4.5e-16)


def test_sppo_of_two_is_sppo_of_the_pair():
    lists = lists_of_ratios(torch.tensor([[0.4, -1.3], [-2.0, 1.0]], dtype=torch.float64), [[0.8, 0.1]] * 2)
    expected = losses.build("sppo", beta=0.3)(pair_of(lists, 0, 1)).loss
    found = losses.build("sppo", beta=0.3, data="lists")(lists).loss
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_a_sum_of_losses_of_lists():
    loss = losses.build("weighted_sum", parts=["plackett_luce", "rrhf"], weights=[1.0, 0.25])
    assert loss.needs.data == "lists"
    batch = _examples.example_batch(loss.needs)
    parts = [losses.build(name)(batch).loss for name in ("plackett_luce", "rrhf")]
    torch.testing.assert_close(loss(batch).loss, parts[0] + 0.25 * parts[1])
    with pytest.raises(ValueError, match="the same kind of data, found lists and pairs"):
        losses.build("weighted_sum", parts=["plackett_luce", "dpo"])


OF_LISTS = [
    *(name for name in losses.names() if losses.describe(name).needs.data == "lists"),
    {"name": "lipo_lambda", "labels": "ranks"},
    {"name": "nca", "data": "lists"},
    {"name": "sppo", "data": "lists"},
]


@pytest.mark.parametrize("spec", OF_LISTS, ids=str)
def test_on_another_device(spec):
    """On a pretend accelerator, which refuses tensors of the CPU beside its own, losses and gradients are the same."""
    loss = losses.build(spec)
    batch = _examples.example_batch(loss.needs, dtype=torch.float32)
    expected = loss(batch)
    with accelerator():
        moved = _examples.mapped(batch, lambda values: values.to(DEVICE))
        found = loss(moved)
        (slopes,) = torch.autograd.grad(found.loss.sum(), [moved.completions.logps])
        assert found.loss.device == found.rewards.device == DEVICE
        torch.testing.assert_close(found.loss.detach().cpu(), expected.loss.detach(), rtol=0, atol=0)
    (own,) = torch.autograd.grad(expected.loss.sum(), [batch.completions.logps])
    torch.testing.assert_close(slopes.own, own, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [spec for spec in OF_LISTS if spec not in ("lipo_lambda", OF_LISTS[-1])], ids=str)
def test_no_device_is_waited_for(spec):
    """Tensors without values are enough, but where scores must lie in [0, 1] and are looked at."""
    loss = losses.build(spec)
    batch = _examples.mapped(_examples.example_batch(loss.needs), lambda values: values.to("meta"))
    assert loss(batch).loss.shape == (8,)
