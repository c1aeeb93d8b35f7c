"""InfoNCA: a value by hand, its gradient, the limit of alpha, and the released code."""

import math

import pytest
import torch
from making_lists import gradient, lists_of_ratios

from alignlab import losses


def test_value_and_gradient_by_hand():
    """q = (1/2, 1/4, 1/4) of scores log 2, 0, 0; shares (1/4, 1/2, 1/4): (1 + 1/4 + 1/2) log 2; slopes shares - q."""
    s = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64).log()
    lists = lists_of_ratios(s, [[math.log(2), 0.0, 0.0]])
    out = losses.build("infonca", beta=1.0, alpha=1.0)(lists)
    assert out.loss.item() == pytest.approx(1.75 * math.log(2), rel=1e-14)
    assert gradient(out.loss, lists)[0].tolist() == pytest.approx([-0.25, 0.25, 0.0], abs=1e-15)


def test_small_alpha_comes_to_the_best_alone():
    """Scores 9.5 and 9: at alpha 1e-4 the best has all of q, as at 0; tied best ones share it."""
    s = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    for scores in ([9.5, 9.0, 1.0], [9.5, 9.5, 9.0], [1.0, 1.0, 1.0]):
        small, limit = (
            losses.build("infonca", beta=1.0, alpha=alpha)(lists_of_ratios(s, [scores])).loss for alpha in (1e-4, 0)
        )
        torch.testing.assert_close(small, limit, rtol=0, atol=1e-15)
    log_z = s.exp().sum().log()
    first = losses.build("infonca", beta=1.0, alpha=0)(lists_of_ratios(s, [[9.5, 9.5, 9.0]])).loss
    torch.testing.assert_close(first, (log_z - (0.5 - 1.0) / 2).reshape(1))


def test_large_scores_in_float32_are_finite():
    """Scores of 1e4 over alpha 1e-4: the exponents are differences, so nothing is inf - inf."""
    lists = lists_of_ratios(torch.zeros(1, 3), [[1e4, 1e4 - 1, -1e4]])
    assert losses.build("infonca")(lists).loss.item() == pytest.approx(math.log(3))


def test_as_the_released_code_has_it():
    """Without the 0.01 that it adds: -(softmax(scores / alpha) * log_softmax(beta ratios)).sum."""
    draw = torch.Generator().manual_seed(0)
    ratios, scores = (torch.randn(50, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    expected = -((scores / 0.3).softmax(-1) * (0.5 * ratios).log_softmax(-1)).sum(-1)
    found = losses.build("infonca", beta=0.5, alpha=0.3)(lists_of_ratios(ratios, scores.tolist())).loss
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
