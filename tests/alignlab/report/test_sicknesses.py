"""Each warning shows on a log made to have its sickness, and on none that lacks it."""

import numpy as np
import pytest

from alignlab.report.records import RunRecord, Series
from alignlab.report.sicknesses import Finding, NotJudged, change, diagnose

STEPS = np.arange(1, 101)


def run_of(metrics=None, samples=None, not_finite=None, **series):
    """A run whose metrics go linearly from one value to another over 100 logs; ``/`` is ``__`` in their names."""
    curves = {name.replace("__", "/"): Series(STEPS, np.linspace(*ends, 100)) for name, ends in series.items()}
    rows = {"samples": {"rows": samples}} if samples else {}
    return RunRecord(None, "run", metrics=metrics or {}, series=curves, not_finite=not_finite or {}, **rows)


def names(run):
    return [one.name for one in diagnose(run)[0]]


def seen(run):
    (finding,) = diagnose(run)[0]
    return finding.seen


HEALTHY = {
    "rewards__margins": (0, 2),
    "rewards__accuracies": (0.5, 0.8),
    "logps_per_token__chosen": (-1.0, -1.1),
    "lengths__chosen": (50, 50),
    "lengths__rejected": (48, 48),
    "group__a__accuracy": (0.5, 0.8),
    "group__b__accuracy": (0.5, 0.75),
    "eval_generation__kl": (0, 8),
}
SAMPLES = [{"before_tokens": 20, "after_tokens": 25}, {"before_tokens": 40, "after_tokens": 45}]


def test_a_healthy_run_has_no_findings_and_everything_is_judged():
    assert diagnose(run_of(samples=SAMPLES, **HEALTHY)) == ([], [])


def test_an_empty_log_is_not_judged_rather_than_healthy():
    findings, not_judged = diagnose(run_of())
    assert findings == []
    assert [one.name for one in not_judged] == [
        "Chosen completions fall",
        "Answers grow longer",
        "Accuracy is saturated",
        "KL blow-up",
    ]


def test_change_compares_first_and_last_tenth():
    """Of 1..100, the first ten have mean 5.5 and the last ten 95.5, each a variance of 55/6: error sqrt(2 * 55/60)."""
    found = change(Series(STEPS, np.arange(1.0, 101.0)))
    assert (found.start, found.end, found.rise) == (5.5, 95.5, 90.0)
    assert found.error == pytest.approx((110 / 60) ** 0.5)
    assert change(Series(STEPS[:7], np.zeros(7))) is None


def test_displacement():
    """-1.0 to -1.3 in a line: the means of the outer tenths are 0.3 * 90/99 apart, 0.27 > 0.25; 0.25 * 90/99 is not."""
    sick = run_of(**{**HEALTHY, "logps_per_token__chosen": (-1.0, -1.3)})
    assert names(sick) == ["Chosen completions fall"]
    assert "from -1.01 to -1.29 nats a token" in seen(sick)
    assert names(run_of(**{**HEALTHY, "logps_per_token__chosen": (-1.0, -1.25)})) == []


def test_falling_without_a_growing_margin_is_another_matter():
    assert names(run_of(**{**HEALTHY, "logps_per_token__chosen": (-1, -2), "rewards__margins": (2, 1)})) == []


def test_noise_of_batches_is_no_displacement():
    """The mean falls by 0.3, but each log differs from the next by 4: the error is far above the half of it."""
    run = run_of(**HEALTHY)
    noise = np.where(STEPS % 2, 2.0, -2.0)
    run.series["logps_per_token/chosen"] = Series(STEPS, np.linspace(-1, -1.33, 100) + noise)
    assert names(run) == []


def test_length_growth_of_answers():
    """60 tokens became 90 over two answers: 1.5 times. One token less, and nothing is said."""
    rows = [{"before_tokens": 20, "after_tokens": 50}, {"before_tokens": 40, "after_tokens": 40}]
    sick = run_of(samples=rows, **HEALTHY)
    assert names(sick) == ["Answers grow longer"]
    assert "from 30 to 45 tokens" in seen(sick)
    rows[1]["after_tokens"] = 39
    assert names(run_of(samples=rows, **HEALTHY)) == []


def test_length_growth_of_generations_during_training():
    assert names(run_of(**HEALTHY, eval_generation__length=(30, 60))) == ["Answers grow longer"]
    assert names(run_of(**HEALTHY, eval_generation__length=(30, 40))) == []


def test_data_that_prefer_length():
    assert names(run_of(**{**HEALTHY, "lengths__chosen": (60, 60), "lengths__rejected": (50, 50)})) == [
        "The data prefer length"
    ]
    assert names(run_of(**{**HEALTHY, "lengths__chosen": (59, 59), "lengths__rejected": (50, 50)})) == []


def test_saturation_needs_a_second_sign():
    """Told apart on 99.5 % of pairs; the margin of the second half goes from 1.05 to 1.96 or stays."""
    saturated = {**HEALTHY, "rewards__accuracies": (0.995, 0.995)}
    growing = run_of(**saturated)
    assert names(growing) == ["Accuracy is saturated"]
    assert "the margin still grew from 1.05 to 1.96 in the second half" in seen(growing)
    still = {**saturated, "rewards__margins": (2, 2)}
    assert names(run_of(**still)) == []
    gap = run_of({"eval_rewards/accuracies": 0.89}, **still)
    assert "on held-out pairs it is 89.0%" in seen(gap)
    assert names(run_of({"eval_rewards/accuracies": 0.9}, **still)) == []
    assert names(run_of(**{**HEALTHY, "rewards__accuracies": (0.98, 0.98)})) == []


def test_a_group_left_behind():
    sick = run_of(**{**HEALTHY, "group__b__accuracy": (0.6, 0.6)})
    assert names(sick) == ["A group is left behind"]
    assert "60.0% on the group b" in seen(sick)
    held_out = {"eval_loss": 0.5, "eval_group/a/accuracy": 0.8, "eval_group/b/accuracy": 0.64}
    assert names(run_of(held_out, **HEALTHY)) == ["A group is left behind"]
    assert names(run_of({**held_out, "eval_group/b/accuracy": 0.66}, **HEALTHY)) == []


def test_kl_blow_up():
    assert names(run_of(**{**HEALTHY, "eval_generation__kl": (0, 20)})) == ["KL blow-up"]
    assert names(run_of(**{**HEALTHY, "eval_generation__kl": (0, 19.9)})) == []


def test_the_kl_of_generations_counts_before_that_of_the_loss():
    assert names(run_of(**HEALTHY, kl=(0, 30))) == []
    alone = {name: ends for name, ends in HEALTHY.items() if "kl" not in name}
    assert names(run_of(**alone, kl=(0, 30))) == ["KL blow-up"]


def test_values_that_are_no_numbers():
    sick = run_of(not_finite={"grad_norm": 3}, **HEALTHY)
    assert "grad_norm (3)" in seen(sick)


def test_every_finding_says_threshold_and_source():
    sick = run_of(
        {"eval_generation/kl": 50.0},
        [{"before_tokens": 1, "after_tokens": 9}],
        {"loss": 1},
        **{
            **HEALTHY,
            "logps_per_token__chosen": (-1, -3),
            "rewards__accuracies": (1, 1),
            "lengths__chosen": (90, 90),
            "group__b__accuracy": (0, 0),
        },
    )
    findings, not_judged = diagnose(sick)
    assert len(findings) == 7
    assert all(isinstance(one, Finding) and one.threshold and one.source for one in findings)
    assert not any(isinstance(one, NotJudged) for one in not_judged)


@pytest.mark.parametrize(("wins", "expected"), [(0.75, ["The reward prefers length"]), (0.65, [])])
def test_a_reward_that_counts_words(wins, expected):
    """The longer answer was chosen in 60% of pairs: more than 70% is too often."""
    metrics = {"eval_length/longer_wins": wins, "eval_length/longer_chosen": 0.6}
    run = run_of(metrics, SAMPLES, **HEALTHY)
    assert names(run) == expected
    if expected:
        assert "has the higher reward in 75%, and was chosen in 60%" in seen(run)
