"""RRHF: values by hand, its gradient, the right order, ties, and the released code."""

import pytest
import torch
from making_lists import lists_of_means

from alignlab import losses

MEANS = torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64)


def test_value_by_hand():
    """Worst first: (1 + 2 + 1) of the three pairs, and the best, of 4 tokens at -3, costs 12 as a sum, 3 as a mean."""
    lists = lists_of_means(MEANS, [[1.0, 2.0, 3.0]], [1, 2, 4])
    assert losses.build("rrhf")(lists).loss.item() == 16.0
    assert losses.build("rrhf", nll_reduction="example", rank_weight=10.0)(lists).loss.item() == 43.0
    assert losses.build("rrhf", nll_weight=0.0)(lists).loss.item() == 4.0


def test_gradient_by_hand():
    """Two pairs are wrong for each end: slopes 2/n and -2/n on their tokens, and 0 on the middle one's."""
    lists = lists_of_means(MEANS, [[1.0, 2.0, 3.0]], [1, 2, 4])
    (slopes,) = torch.autograd.grad(losses.build("rrhf", nll_weight=0.0)(lists).loss.sum(), [lists.completions.logps])
    assert slopes[0].tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0] * 4, [-0.5] * 4]


def test_in_the_right_order_the_likelihood_alone():
    lists = lists_of_means(MEANS, [[3.0, 2.0, 1.0]], [1, 2, 4])
    assert losses.build("rrhf")(lists).loss.item() == 1.0
    assert losses.build("rrhf", nll_weight=0.0)(lists).loss.item() == 0.0


def test_ties_are_not_compared():
    """Scores 2, 2, 1 with p = -2, -1, -1.5: one pair is wrong, by 0.5; the best two cost (4 + 2) / 2."""
    lists = lists_of_means(torch.tensor([[-2.0, -1.0, -1.5]]), [[2.0, 2.0, 1.0]])
    assert losses.build("rrhf")(lists).loss.item() == 3.5


def test_as_the_released_code_has_it():
    """-diff[(reward_diff > 0) & (diff < 0)].sum() over all completions; rewards are the mean log-probabilities."""
    draw = torch.Generator().manual_seed(0)
    means, scores = -torch.rand(20, 4, generator=draw, dtype=torch.float64), torch.rand(20, 4, generator=draw)
    out = losses.build("rrhf", nll_weight=0.0)(lists_of_means(means, scores.tolist()))
    diff = means[:, None, :] - means[:, :, None]
    wrong = ((scores[:, None, :] - scores[:, :, None]) > 0) & (diff < 0)
    torch.testing.assert_close(out.loss.sum(), -diff[wrong].sum())
    torch.testing.assert_close(out.rewards, means)


def test_options():
    with pytest.raises(ValueError, match=r"loss\.rank_weight must be a finite number > 0, found 0"):
        losses.build("rrhf", rank_weight=0.0)
