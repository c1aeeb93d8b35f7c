"""MPPO: its four variants by hand, ties, and the pair that all of them are."""

import pytest
import torch
from making_lists import gradient, lists_of_means

from alignlab import losses

HALVES = torch.tensor([[0.5, 0.25, 0.125]], dtype=torch.float64).log()
VARIANTS = ("mnm", "mns", "mcm", "mcs")


def minus_log_sigmoid(*gaps):
    return torch.nn.functional.softplus(-torch.tensor(gaps, dtype=torch.float64)).sum().item()


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("mnm", minus_log_sigmoid(2 * 0.5 - 0.375)),
        ("mns", minus_log_sigmoid(0.25, 0.375)),
        ("mcm", minus_log_sigmoid(0.25 + 0.375 + 0.125)),
        ("mcs", minus_log_sigmoid(0.25, 0.375, 0.125)),
    ],
)
def test_value_by_hand(variant, expected):
    """Mean likelihoods 1/2, 1/4, 1/8, best first, whatever the lengths are."""
    out = losses.build("mppo", variant=variant)(lists_of_means(HALVES, [[3.0, 2.0, 1.0]], [1, 5, 3]))
    assert out.loss.item() == pytest.approx(expected, rel=1e-14)
    torch.testing.assert_close(out.rewards, HALVES.exp())


def test_all_variants_are_one_on_a_pair():
    lists = lists_of_means(HALVES[:, :2], [[0.0, 1.0]])
    expected = pytest.approx(minus_log_sigmoid(-0.25), rel=1e-14)
    assert [losses.build("mppo", variant=variant)(lists).loss.item() for variant in VARIANTS] == [expected] * 4


def test_gradient_by_hand():
    """mnm, gap 0.625: the slope on a mean is -s(-0.625) times 2 p_w, p_2 and p_3 with their signs; n = 2 tokens."""
    lists = lists_of_means(HALVES, [[3.0, 2.0, 1.0]])
    slope = torch.tensor(-0.625, dtype=torch.float64).sigmoid().item() / 2
    expected = [-2 * 0.5 * slope, 0.25 * slope, 0.125 * slope]
    assert gradient(losses.build("mppo")(lists).loss, lists)[0].tolist() == pytest.approx(expected, rel=1e-13)


def test_tied_best_ones_each_meet_the_rest():
    """1/2 and 1/4 tied before 1/8: gaps 0.375 and 0.125."""
    lists = lists_of_means(HALVES, [[2.0, 2.0, 1.0]])
    for variant in VARIANTS:
        gaps = (0.375, 0.125) if variant.endswith("s") else (0.5,)
        found = losses.build("mppo", variant=variant)(lists).loss.item()
        assert found == pytest.approx(minus_log_sigmoid(*gaps), rel=1e-14)
