"""S-DPO: a value by hand, the formula of its code, ties, and where its code overflows."""

import pytest
import torch
from making_lists import gradient, lists_of_ratios

from alignlab import losses


def test_value_by_hand():
    """s = log 4, log 2, log 1: log(1 + 2/4 + 1/4) = log(7/4), whatever the order of the two that lose."""
    s = torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64).log()
    for scores in ([3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 1.0, 1.0]):
        out = losses.build("softmax_dpo", beta=1.0)(lists_of_ratios(s, [scores]))
        assert out.loss.exp().item() == pytest.approx(7 / 4, rel=1e-14)


def test_it_is_the_first_place_of_plackett_luce():
    """Best against a tied rest both are the same."""
    s = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.0, 0.0, -1.0, 3.0]], dtype=torch.float64)
    lists = lists_of_ratios(s, [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found, expected = (losses.build(name, beta=0.7)(lists).loss for name in ("softmax_dpo", "plackett_luce"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_as_its_code_has_it():
    """-log sigmoid(-log sum_l exp(beta (ratio_l - ratio_w))), the first completion best."""
    ratios = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exponents = (0.9 * (ratios[:, 1:] - ratios[:, :1])).exp().sum(1)
    expected = -torch.nn.functional.logsigmoid(-exponents.log())
    found = losses.build("softmax_dpo", beta=0.9)(lists_of_ratios(ratios, [[4.0, 1.0, 3.0, 2.0]] * 50)).loss
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_of_tied_best_ones_the_mean():
    """s = log 4, log 2, log 1, the first two tied: (log(1 + 1/4) + log(1 + 1/2)) / 2."""
    s = torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64).log()
    out = losses.build("softmax_dpo", beta=1.0)(lists_of_ratios(s, [[2.0, 2.0, 1.0]]))
    assert (2 * out.loss).exp().item() == pytest.approx(5 / 4 * 3 / 2, rel=1e-14)


def test_where_its_code_overflows():
    """A gap of 200 nats the wrong way is infinite as exp in float32; the loss is 200 plus log 2 for two such.

    Float32 holds 200 to 1.5e-5, and the slopes are exponents of differences from it.
    """
    lists = lists_of_ratios(torch.tensor([[0.0, 200.0, 200.0]]), [[1.0, 0.0, 0.0]])
    out = losses.build("s_dpo", beta=1.0)(lists)
    assert out.loss.item() == pytest.approx(200.6931, abs=1e-4)
    assert gradient(out.loss, lists)[0].tolist() == pytest.approx([-1.0, 0.5, 0.5], abs=1.5e-5)
