"""Every figure of the metrics against a number worked out by hand."""

import math

import numpy as np
import pytest

from alignlab import metrics
from alignlab.metrics import formulas, statistics


def test_preference_accuracy():
    """3 of 4 above, one tie that is no success; Wilson at p = 1/2, n = 4 is 1/2 -+ z/2 sqrt(1/(4 + z^2))."""
    found = formulas.preference_accuracy([1, 2, 3, 0], [0, 1, 3, 1])
    half = statistics.Z / 2 * math.sqrt(1 / (4 + statistics.Z**2))
    assert found == {
        "accuracy": 0.5,
        "low": pytest.approx(0.5 - half),
        "high": pytest.approx(0.5 + half),
        "ties": 0.25,
        "rows": 4,
    }


def test_margin_calibration():
    """Margins +-ln 3 say 3/4; ln 9 says 9/10. Bins of width 1/4: [1/2, 3/4), [3/4, 1].

    Three rows of confidence 3/4, two of them right, and one of 9/10, right: all in the second bin, 3/4 right against a
    mean confidence of 63/80 = 0.7875. Brier: (1/16 + 1/16 + 9/16 + 1/100) / 4. NLL: -(2 ln 3/4 + ln 1/4 + ln 9/10) / 4.
    """
    found = formulas.margin_calibration([math.log(3), math.log(3), -math.log(3), math.log(9)], bins=2)
    assert found["margin"] == pytest.approx((math.log(3) + math.log(9)) / 4)
    assert found["ece"] == pytest.approx(0.0375)
    assert found["mce"] == pytest.approx(0.0375)
    assert found["overconfidence"] == pytest.approx(0.0375)
    assert found["brier"] == pytest.approx((11 / 16 + 1 / 100) / 4)
    assert found["nll"] == pytest.approx(-(2 * math.log(0.75) + math.log(0.25) + math.log(0.9)) / 4)
    [only] = found["reliability"]
    assert only == {"low": 0.75, "high": 1.0, "rows": 4, "confidence": pytest.approx(0.7875), "accuracy": 0.75}


def test_calibration_is_weighted_by_the_rows_of_a_bin():
    """A tie (confidence 1/2, half right: no gap) and two sure mistakes (confidence 1, gap 1): ece 2/3, mce 1."""
    found = formulas.margin_calibration([0, -800, -800])
    assert found["ece"] == pytest.approx(2 / 3)
    assert found["mce"] == pytest.approx(1)
    assert found["nll"] == pytest.approx((math.log(2) + 1600) / 3)
    assert found["brier"] == pytest.approx((0.25 + 2) / 3)


def test_group_accuracy():
    """Group b gets 1 of 3, group a 2 of 2; margins 1, 1 and 1, -1, -3."""
    found = formulas.group_accuracy([1, 2, 1, 0, 0], [0, 1, 0, 1, 3], ["a", "a", "b", "b", "b"])
    assert found["worst_group"] == "b"
    assert found["worst_accuracy"] == pytest.approx(1 / 3)
    assert found["group_mean"] == pytest.approx(2 / 3)
    assert found["gap"] == pytest.approx(3 / 5 - 1 / 3)
    assert found["groups"]["a"]["margin"] == 1
    assert found["groups"]["b"]["margin"] == -1
    assert found["groups"]["b"]["rows"] == 3


def test_sequence_kl():
    """Answers with log-ratios (ln 2, -ln 2) and (ln 4): k1 = (0 + ln 4) / 2.

    exp(-r) - 1 + r: 1/2 - 1 + ln 2, 2 - 1 - ln 2 and 1/4 - 1 + ln 4; so k3 = (1/2 + (ln 4 - 3/4)) / 2.
    """
    found = formulas.sequence_kl([[math.log(2), -math.log(2)], [math.log(4)]], [[0.1, 0.2], [0.6]])
    assert found["k1"] == pytest.approx(math.log(4) / 2)
    assert found["k3"] == pytest.approx((0.5 + math.log(4) - 0.75) / 2)
    assert found["exact"] == pytest.approx(0.45)
    assert found["exact_error"] == pytest.approx(0.15)  # 0.3 and 0.6: s = 0.3 / sqrt 2, over sqrt 2
    assert found["per_token"] == pytest.approx(0.3)
    assert formulas.sequence_kl([[math.log(2)], []])["per_token"] == pytest.approx(math.log(2))


def test_both_estimates_meet_the_exact_kl():
    """p = (0.7, 0.3) against q = (0.4, 0.6), 40,000 samples: within five standard errors of 0.7 ln 7/4 + 0.3 ln 1/2."""
    rng = np.random.default_rng(0)
    p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    ratios = np.log(p / q)[rng.choice(2, size=40_000, p=p)]
    exact = float((p * np.log(p / q)).sum())
    found = formulas.sequence_kl(ratios[:, None])
    for name in ("k1", "k3"):
        assert abs(found[name] - exact) < 5 * found[f"{name}_error"], name
    assert found["k3_error"] < found["k1_error"]


def test_likelihood_displacement():
    """Changes of chosen -1, -1, +1, -3 and of rejected -2, +1, -1, -2."""
    found = formulas.likelihood_displacement([-2, -2, 0, -4], [-1, -1, -1, -1], [-3, 0, -2, -3], [-1, -1, -1, -1])
    assert found == {
        "chosen_change": -1.0,
        "rejected_change": -1.0,
        "chosen_fell": 0.75,
        "rejected_fell": 0.75,
        "both_fell": 0.5,  # the first and the last
        "chosen_fell_margin_grew": 0.25,  # the first: the chosen fell by 1, the rejected by 2
    }


def test_length_exploitation():
    """Lengths 1 2 3 4, rewards 0 1 1 4: covariance 1.5, variances 1.25 and 2.25; ranks of rewards 1, 2.5, 2.5, 4."""
    found = formulas.length_exploitation([1, 2, 3, 4], [0, 1, 1, 4], [2, 2, 2, 2])
    assert found["length"] == 2.5
    assert found["pearson"] == pytest.approx(1.5 / math.sqrt(1.25 * 2.25))
    assert found["spearman"] == pytest.approx(1.125 / math.sqrt(1.25 * 1.125))
    assert found["slope"] == pytest.approx(1.2)
    assert found["reference_length"] == 2
    assert found["growth"] == pytest.approx(0.25)
    assert found["longer"] == 0.5


def test_length_without_variation_has_no_correlation():
    found = formulas.length_exploitation([2, 2], [0, 1])
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert math.isnan(found["slope"])


def test_pair_length_bias():
    """Right in both rows whose chosen is longer, in one of two whose chosen is shorter; one of equal length."""
    found = formulas.pair_length_bias([1, 2, 3, -1, 5], [5, 6, 1, 1, 2], [1, 1, 2, 3, 2])
    assert found["chosen_longer"] == pytest.approx(0.4)
    assert found["accuracy_chosen_longer"] == 1
    assert found["accuracy_chosen_shorter"] == 0.5


def test_win_rate():
    """2 wins, 1 tie, 1 loss: 2.5 of 4."""
    found = formulas.win_rate([1, 1, 0.5, 0])
    assert found["win_rate"] == 0.625
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert (found["low"], found["high"]) == statistics.wilson_interval(0.625, 4)
    assert formulas.win_rate([1] * 5)["bootstrap_low"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: formulas.preference_accuracy([], []), "chosen: expected one number a row and at least one row"),
        (lambda: formulas.preference_accuracy([1, 2], [1]), "rejected has 1 rows, chosen has 2"),
        (lambda: formulas.preference_accuracy([1, math.nan], [1, 2]), "chosen: row 1 is nan"),
        (lambda: formulas.group_accuracy([1], [0], ["a", "b"]), "groups has 2 rows, chosen has 1"),
        (lambda: formulas.win_rate([1, 2]), r"outcomes must be in \[0, 1\], found 1.0 to 2.0"),
        (lambda: formulas.sequence_kl([[1.0]], [[1.0, 2.0]]), "differ in their numbers of tokens"),
        (lambda: formulas.margin_calibration([1], bins=0), "bins: expected at least 1, found 0"),
        (lambda: metrics.path("acuracy"), "no metric 'acuracy'; there are diversity,"),
    ],
)
def test_errors_say_which_column_and_row(call, message):
    with pytest.raises(ValueError, match=message):
        call()
