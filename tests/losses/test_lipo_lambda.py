"""LiPO-lambda: values by hand, twice weighted DPO of two, the first step, ties, and what labels may be."""

import math

import pytest
import torch
from making_lists import gradient, lists_of_ratios, pair_of

from alignlab import losses

INVERSE = [1 / math.log(1 + rank) for rank in (1, 2, 3)]
softplus = torch.nn.functional.softplus


def test_value_by_hand():
    """Labels 1, 1/2, 0 and s = 0, 1, 2, so that the ranks are 3, 2, 1: each pair is the wrong way round."""
    s = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    out = losses.build("lipo_lambda", beta=1.0)(lists_of_ratios(s, [[1.0, 0.5, 0.0]]))
    gains = [2.0, math.sqrt(2.0), 1.0]
    expected = sum(
        (gains[i] - gains[j]) * (INVERSE[2 - j] - INVERSE[2 - i]) * math.log1p(math.exp(j - i))
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-13)


def test_two_completions_are_weighted_dpo():
    """1 / log 2 - 1 / log 3 = 0.532456, times 2^0.9 - 2^0.3, whichever of the two the policy prefers."""
    s = torch.tensor([[0.4, -1.3], [-2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    lists = lists_of_ratios(s, [[0.9, 0.3]] * 3)
    dpo = losses.build("dpo", beta=0.3)(pair_of(lists, 0, 1)).loss
    assert INVERSE[0] - INVERSE[1] == pytest.approx(0.532456, abs=1e-6)
    weight = (2**0.9 - 2**0.3) * (INVERSE[0] - INVERSE[1])
    torch.testing.assert_close(losses.build("lipo", beta=0.3)(lists).loss, weight * dpo, rtol=1e-14, atol=0)


def test_the_first_step_is_one():
    """At policy == reference equal s are ranked by their labels: log 2 times the weights of the right order."""
    lists = lists_of_ratios(torch.zeros(1, 3, dtype=torch.float64), [[0.0, 1.0, 0.5]])
    out = losses.build("lipo_lambda", beta=1.0)(lists)
    gains = [2.0, math.sqrt(2.0), 1.0]
    weights = [(gains[i] - gains[j]) * (INVERSE[i] - INVERSE[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert out.loss.item() == pytest.approx(math.log(2) * sum(weights), rel=1e-13)
    expected = [0.5 * (weights[1] + weights[2]), -0.5 * (weights[0] + weights[1]), 0.5 * (weights[0] - weights[2])]
    assert gradient(out.loss, lists)[0].tolist() == pytest.approx(expected, rel=1e-13)


def test_equal_in_both_share_their_discount():
    """s all 0, labels 1, 1, 0: the first two share (1 / log 2 + 1 / log 3) / 2, the last has 1 / log 4."""
    lists = lists_of_ratios(torch.zeros(1, 3, dtype=torch.float64), [[1.0, 1.0, 0.0]])
    out = losses.build("lipo_lambda", beta=1.0)(lists)
    weight = (INVERSE[0] + INVERSE[1]) / 2 - INVERSE[2]
    assert out.loss.item() == pytest.approx(2 * weight * math.log(2), rel=1e-13)


def test_labels_of_ranks_are_as_exact_as_the_rest():
    """Of three completions they are thirds, which float32 has with eight digits only: 2/3, 1/3, 0."""
    s = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    found = losses.build("lipo_lambda", beta=1.0, labels="ranks")(lists_of_ratios(s, [[9.0, 7.0, 1.0]])).loss
    places, psi, values = (0, 2, 1), (2 / 3, 1 / 3, 0.0), s[0].tolist()
    expected = sum(
        (2 ** psi[i] - 2 ** psi[j])
        * abs(INVERSE[places[i]] - INVERSE[places[j]])
        * math.log1p(math.exp(values[j] - values[i]))
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert found.item() == pytest.approx(expected, rel=1e-14)


def test_labels_of_ranks():
    """Scores 9, 7, 7, 1 are beaten by none, one, one, three: labels 3/4, 1/4, 1/4, 0."""
    s = torch.tensor([[0.3, -0.2, 0.1, 0.0]], dtype=torch.float64)
    ranks = losses.build("lipo_lambda", labels="ranks")(lists_of_ratios(s, [[9.0, 7.0, 7.0, 1.0]])).loss
    scores = losses.build("lipo_lambda")(lists_of_ratios(s, [[0.75, 0.25, 0.25, 0.0]])).loss
    torch.testing.assert_close(ranks, scores, rtol=0, atol=0)


def test_scores_must_be_labels():
    """A hole's score is no label."""
    lists = lists_of_ratios(torch.zeros(1, 3), [[9.0, 7.5, math.nan]])
    with pytest.raises(ValueError, match=r"labels in \[0, 1\], found 0 to 9: scale them, or write labels: ranks"):
        losses.build("lipo_lambda")(lists)
    lists.scores = torch.tensor([[0.9, 0.1, 7.0]])
    assert losses.build("lipo_lambda")(lists).loss.item() > 0


def test_scores_are_looked_at_when_the_rows_are_known():
    expected = r"^scores of the rows must be in \[0, 1\], found 0\.5 to 9: lipo_lambda reads them as labels; scale"
    nine = losses.Facts(rows=2, ranges={"scores": (0.5, 9.0)})
    with pytest.raises(ValueError, match=expected):
        losses.build("lipo_lambda").bind(nine)
    losses.build("lipo_lambda", labels="ranks").bind(nine)
    losses.build("lipo_lambda").bind(losses.Facts(rows=2, ranges={"scores": (0.0, 1.0)}))
