"""Figures of pairs and of answers against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from alignlab.evaluation.answers import AnswerRow
from alignlab.evaluation.figures import answer_figures, flat, pair_figures
from alignlab.evaluation.pairs import PairRow
from alignlab.judges import DISAGREE, Verdict


def test_figures_of_pairs() -> None:
    """Two rows, beta 1/2: rewards 1/2 (-1 + 2) = 1/2 against 0, and 1/2 (-3 + 2) = -1/2 against 0."""
    rows = [
        PairRow(0, "f:1", "a", -1.0, -4.0, 1, 2, -2.0, -4.0),
        PairRow(1, "f:2", "b", -3.0, -2.0, 3, 1, -2.0, -2.0),
    ]
    figures = pair_figures(rows, beta=0.5)
    assert figures["preference"]["accuracy"] == 0.5
    assert figures["calibration"]["margin"] == 0
    assert figures["calibration"]["nll"] == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2)
    assert figures["likelihood"]["accuracy"] == 0.5  # -1 > -4, but -3 < -2
    assert figures["likelihood"]["accuracy_per_token"] == 1.0  # -1 > -2 and -1 > -2
    assert figures["displacement"]["chosen_fell"] == 0.5
    assert figures["group"]["worst_group"] == "b"
    assert figures["groups"]["a"]["accuracy"] == 1.0
    assert figures["length"]["accuracy_chosen_longer"] == 0.0
    alone = pair_figures([PairRow(0, "f:1", None, -1.0, -4.0, 1, 2)], beta=0.5)
    assert alone["calibration"]["margin"] == 1.5
    assert not {"displacement", "groups", "group"} & alone.keys()


def test_figures_of_answers() -> None:
    """Two judged answers and an unjudged one; rewards 1 and 3 on lengths 2 and 4: slope 1."""
    verdicts = [Verdict(1.0, 1.0, 0.0), Verdict(0.5, 3.0, 3.0, note=DISAGREE), Verdict(None, note="no")]
    rows = [
        AnswerRow(n, 0, "f", "p", f"answer {n}", "gold", 2 * n + 2, 2, n < 2, -1.0, [0.5], [0.25], verdict)
        for n, verdict in enumerate(verdicts)
    ]
    figures = answer_figures(rows)
    assert figures["length"] == {
        "tokens": 4.0,
        "reference_length": 2.0,
        "growth": 1.0,
        "longer": pytest.approx(2 / 3),
        "finished": pytest.approx(2 / 3),
    }
    assert figures["win"]["win_rate"] == 0.75
    assert (figures["win"]["unjudged"], figures["win"]["disagreed"]) == (1, 1)
    assert figures["reward"] == {
        "mean": 2.0,
        "error": pytest.approx(1.0),
        "length_pearson": pytest.approx(1.0),
        "length_spearman": pytest.approx(1.0),
        "length_slope": pytest.approx(1.0),
    }
    assert figures["kl"]["k1"] == 0.5
    assert figures["kl"]["exact"] == 0.25
    assert figures["diversity"]["unique"] == 1.0
    assert flat({"a": {"b": 1, "c": math.nan, "d": "text"}, "e": [1]}) == {"a/b": 1.0}


def test_only_judged_answers_count(caplog: pytest.LogCaptureFixture) -> None:
    row = AnswerRow(0, 0, "f", "p", "x", "y", 1, 1, True, -1.0, [], [], Verdict(None, note="no"))
    assert answer_figures([row])["win"] == {"unjudged": 1, "disagreed": 0}
