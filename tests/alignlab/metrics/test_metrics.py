"""Every figure of the metrics against a number worked out by hand, from Python and through `evaluate`."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignlab import metrics
from alignlab.metrics import formulas, statistics

NAMES = [
    "diversity",
    "group_accuracy",
    "length_exploitation",
    "likelihood_displacement",
    "margin_calibration",
    "preference_accuracy",
    "sequence_kl",
    "win_rate",
]


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


def test_wilson_interval_of_a_textbook():
    """8 of 10: (0.4902, 0.9433); 0 of 10: (0, 0.2775)."""
    assert statistics.wilson_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert statistics.wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


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


def test_diversity():
    """ "a b a" and "a b": 5 words of 2 kinds, bigrams ab, ba, ab: 2 of 3 differ.

    BLEU of "a b" against "a b a": all its n-grams stand there, length 2 against 3: exp(1 - 3/2). BLEU of "a b a"
    against "a b": unigrams a, b clipped to 2 of 3, bigrams 1 of 2, trigram none: 0.
    """
    found = formulas.diversity(["a b a", "a b"], orders=(1, 2))
    assert found["distinct_1"] == pytest.approx(2 / 5)
    assert found["distinct_2"] == pytest.approx(2 / 3)
    assert found["unique"] == 1
    assert found["self_bleu"] == pytest.approx(math.exp(-0.5) / 2)


def test_self_bleu_with_partial_overlap():
    """ "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, same length: (1/5)^(1/4), both ways."""
    scores = formulas.self_bleu([list("abcde"), list("abcdf")])
    assert scores == pytest.approx([0.2**0.25] * 2)
    assert formulas.self_bleu([["x"] * 6] * 3) == pytest.approx([1, 1, 1])
    assert formulas.self_bleu([list("abcd"), list("efgh")]) == [0, 0]
    assert formulas.self_bleu([[], [], ["a"]]) == [1, 1, 0]


def test_self_bleu_leaves_the_text_itself_out():
    """Three texts, clipped by the most that any one of the *others* has: "a a" finds one a elsewhere: 1/2."""
    scores = formulas.self_bleu([["a", "a"], ["a", "b"], ["c"]], order=1)
    assert scores == pytest.approx([1 / 2, 1 / 2, 0])


def test_diversity_within_groups():
    """Alike within each prompt, different between them: no diversity within, which all texts together would hide."""
    texts = ["one two three four"] * 2 + ["five six seven eight"] * 2
    within = formulas.diversity(texts, ["p", "p", "q", "q"])
    assert within["self_bleu"] == pytest.approx(1)
    assert within["unique"] == 0.5
    assert within["distinct_1"] == 0.5
    assert math.isnan(formulas.diversity(texts, ["p", "q", "r", "s"])["self_bleu"])


def test_win_rate():
    """2 wins, 1 tie, 1 loss: 2.5 of 4."""
    found = formulas.win_rate([1, 1, 0.5, 0])
    assert found["win_rate"] == 0.625
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert (found["low"], found["high"]) == statistics.wilson_interval(0.625, 4)
    assert formulas.win_rate([1] * 5)["bootstrap_low"] == 1


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    """1,000 coin tosses: half width near 1.96 * 0.5 / sqrt(1000) = 0.031, around the mean; the seed decides."""
    values = np.arange(1000) % 2
    low, high = statistics.bootstrap_interval(values, 2000, seed=1)
    assert (high - low) / 2 == pytest.approx(0.031, abs=0.002)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.002)
    assert statistics.bootstrap_interval(values, 2000, seed=1) == (low, high)


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


# ---- through `evaluate` ------------------------------------------------------------------------------------------

INPUTS = {
    "diversity": {"texts": ["a b a", "a b"], "groups": ["p", "p"]},
    "group_accuracy": {"chosen": [1.0, 0.0], "rejected": [0.0, 1.0], "groups": ["a", "b"]},
    "length_exploitation": {"lengths": [1, 2, 3, 4], "rewards": [0.0, 1.0, 1.0, 4.0], "reference_lengths": [2] * 4},
    "likelihood_displacement": {
        "chosen": [-2.0, 0.0],
        "ref_chosen": [-1.0, -1.0],
        "rejected": [-3.0, -2.0],
        "ref_rejected": [-1.0, -1.0],
    },
    "margin_calibration": {"margins": [math.log(3), -math.log(3), 0.0], "bins": 2},
    "preference_accuracy": {"chosen": [1.0, 2.0], "rejected": [0.0, 2.0]},
    "sequence_kl": {"log_ratios": [[0.5, -0.25], [1.0]], "token_kl": [[0.1, 0.2], [0.3]]},
    "win_rate": {"outcomes": [1.0, 0.5, 0.0, 1.0], "resamples": 50},
}


def test_the_folder_is_the_list_of_metrics():
    assert metrics.names() == NAMES == sorted(INPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_loads_it_by_path_and_agrees(name, tmp_path):
    """``evaluate.load(path).compute(...)`` in a folder of its own returns what the formula does."""
    loaded = metrics.load(name, cache_dir=str(tmp_path))
    assert loaded.description.split() == getattr(formulas, name).__doc__.split()
    found = loaded.compute(**INPUTS[name])
    expected = getattr(formulas, name)(**INPUTS[name])
    assert {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in expected.items()}


def test_evaluate_adds_batches(tmp_path):
    loaded = metrics.load("preference_accuracy", cache_dir=str(tmp_path))
    loaded.add_batch(chosen=[1.0, 2.0], rejected=[0.0, 3.0])
    loaded.add(chosen=5.0, rejected=0.0)
    assert loaded.compute()["accuracy"] == pytest.approx(2 / 3)


def test_loads_offline_away_from_the_checkout(tmp_path):
    """In a fresh process, with the hub switched off and an empty cache, and from another folder."""
    script = (
        "import json, evaluate\n"
        "from alignlab import metrics\n"
        "print(json.dumps(evaluate.load(metrics.path('win_rate')).compute(outcomes=[1.0, 0.5])['win_rate']))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == 0.75


def test_no_metric_imports_two_names_on_one_line():
    """``import datasets, evaluate`` breaks evaluate's loader, which reads the lines."""
    for file in Path(metrics.FOLDER).glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not (line.startswith("import ") and "," in line), file
