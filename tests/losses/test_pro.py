"""PRO: values by hand, Plackett-Luce without temperatures, the released code, and ties."""

import math

import pytest
import torch
from making_lists import lists_of_means, lists_of_ratios

from alignlab import losses

MEANS = torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64)


def test_value_by_hand():
    """Scores 2, 1, 0. Place 1: exponents -1 * 2 against -2 * 1 and -3 * 2, log(2 + e^-4). Place 2: log(1 + e^-1)."""
    lists = lists_of_means(MEANS, [[2.0, 1.0, 0.0]], [3, 2, 4])
    ranking = math.log(2 + math.exp(-4)) + math.log1p(math.exp(-1))
    assert losses.build("pro", sft_weight=0.0)(lists).loss.item() == pytest.approx(ranking, rel=1e-14)
    assert losses.build("pro")(lists).loss.item() == pytest.approx(ranking + 0.05 * 4 * 3, rel=1e-14)
    by_token = losses.build("pro", sft_weight=1.0, nll_reduction="example")(lists).loss.item()
    assert by_token == pytest.approx(ranking + 4 * 1, rel=1e-14)


def test_without_temperatures_it_is_plackett_luce_of_means():
    draw = torch.Generator().manual_seed(0)
    means, scores = -torch.rand(20, 4, generator=draw, dtype=torch.float64), torch.rand(20, 4, generator=draw).tolist()
    found = losses.build("pro", temperature=False, sft_weight=0.0)(lists_of_means(means, scores)).loss
    expected = losses.build("plackett_luce", beta=1.0)(lists_of_ratios(means, scores)).loss
    torch.testing.assert_close(found, expected)


def test_as_the_released_code_has_it():
    """Its loop over places, best first, without the 1e-10 that it adds in the logarithm."""
    draw = torch.Generator().manual_seed(0)
    p = -2 * torch.rand(20, 4, generator=draw, dtype=torch.float64)
    rewards = 3 * torch.rand(20, 4, generator=draw, dtype=torch.float64).sort(-1, descending=True).values
    expected = torch.zeros(20, dtype=torch.float64)
    for place in range(3):
        negative = rewards[:, place : place + 1] - rewards[:, place + 1 :]
        own = p[:, place] * negative.max(1).values
        others = (p[:, place + 1 :] * negative).exp().sum(1)
        expected += (own.exp() + others).log() - own
    expected += 0.05 * 3**2 * -2 * p[:, 0]
    torch.testing.assert_close(losses.build("pro")(lists_of_means(p, rewards.tolist())).loss, expected)


def test_ties_are_not_compared():
    """Scores 1, 1, 0: each of the tied meets the last alone, gap 1; the mean of the best two is learned."""
    lists = lists_of_means(MEANS, [[1.0, 1.0, 0.0]])
    ranking = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    assert losses.build("pro")(lists).loss.item() == pytest.approx(ranking + 0.05 * 4 * (2 + 4) / 2, rel=1e-14)


def test_the_weight_of_the_best_counts_the_completions_that_are_there():
    """Two completions and a hole: (2 - 1)^2."""
    lists = lists_of_means(MEANS, [[1.0, 0.0, math.nan]])
    assert losses.build("pro")(lists).loss.item() == pytest.approx(math.log1p(math.exp(-1)) + 0.05 * 2, rel=1e-14)
