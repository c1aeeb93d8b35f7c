"""Plackett-Luce: a value by hand, DPO of two, all rankings, ties, and S-DPO's softmax."""

from itertools import permutations

import pytest
import torch
from making_lists import gradient, lists_of_ratios

from alignlab import losses


def test_value_by_hand():
    """beta 1, s = log 4, log 2, log 1 best first: the ranking has the probability 4/7 * 2/3 = 8/21."""
    s = torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64).log()
    out = losses.build("plackett_luce", beta=1.0)(lists_of_ratios(s, [[3.0, 2.0, 1.0]]))
    assert out.loss.exp().item() == pytest.approx(21 / 8, rel=1e-14)
    torch.testing.assert_close(out.rewards, s)


def test_all_rankings_of_four_sum_to_one():
    s = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)
    orders = list(permutations(range(4)))
    scores = [[-float(order.index(place)) for place in range(4)] for order in orders]
    out = losses.build("plackett_luce", beta=1.0)(lists_of_ratios(s.expand(24, 4), scores))
    assert (-out.loss).exp().sum().item() == pytest.approx(1.0, abs=1e-14)
    by_hand = [drawn_one_by_one(s[list(order)].tolist()) for order in orders]
    torch.testing.assert_close((-out.loss).exp(), torch.tensor(by_hand, dtype=torch.float64))


def drawn_one_by_one(ranked):
    """Returns the probability of drawing ``ranked`` in this order, each from those that are left."""
    weights = torch.tensor(ranked, dtype=torch.float64).exp().tolist()
    result = 1.0
    for place, weight in enumerate(weights):
        result *= weight / sum(weights[place:])
    return result


def test_ties_say_nothing_of_their_order():
    """s = log 4, log 2, log 1. Two tied before a third: 4/5 * 2/3. One before two tied: 4/7. All tied: 1."""
    s = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64).log().expand(3, 3)
    lists = lists_of_ratios(s, [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    out = losses.build("plackett_luce", beta=1.0)(lists)
    torch.testing.assert_close((-out.loss).exp(), torch.tensor([8 / 15, 4 / 7, 1.0], dtype=torch.float64))
    assert not gradient(out.loss, lists)[2].any()


def test_far_apart_in_float32():
    """A gap of 1e4 nats the wrong way costs 1e4, with the slopes -1 and 1; the right way it costs nothing."""
    lists = lists_of_ratios(torch.tensor([[-1e4, 0.0], [0.0, -1e4]]), [[1.0, 0.0]] * 2)
    out = losses.build("plackett_luce", beta=1.0)(lists)
    assert out.loss.tolist() == [1e4, 0.0]
    assert gradient(out.loss, lists).tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_options():
    with pytest.raises(ValueError, match=r"loss\.beta must be a finite number > 0, found 0"):
        losses.build("plackett_luce", beta=0.0)
