"""Rules by hand: which answers meet."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from alignlab.pairing import RULES, PairOptions, describe
from alignlab.pairing.rules import Couple, Scored, joined_tests, win_rates

SCORES = [0.0, 3.0, 1.0, 2.0]


def couples(rule: str, scores: list[float] = SCORES, seed: int = 0, **options: float) -> list[Couple]:
    function = RULES[rule]
    assert function is not None
    return function(Scored(list(scores), chance=random.Random(seed)), PairOptions(rule=rule, **options))  # type: ignore[arg-type]


def test_best_and_worst() -> None:
    assert couples("best_worst") == couples("west_of_n") == [(1, 0)]
    assert couples("best_worst", [1.0, 2.0, 2.0, 1.0]) == [(1, 0)]  # of equal ones the first


def test_best_over_any_other() -> None:
    """Over 3,000 seeds each of the three others comes a third of the time, within four standard errors."""
    drawn = Counter(couples("best_random", seed=seed)[0] for seed in range(3000))
    assert set(drawn) == {(1, 0), (1, 2), (1, 3)}
    assert all(abs(count / 3000 - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000) for count in drawn.values())


def test_best_over_what_lies_two_deviations_below() -> None:
    """Mean 2, deviation sqrt(14/4) = 1.87, so 2 sigma below is -1.74: the 0. At half a sigma 1.06: the 1."""
    scores = [0.0, 5.0, 1.0, 2.0]
    assert couples("best_sigma", scores) == [(1, 0)]
    assert couples("best_sigma", scores, sigmas=0.5) == [(1, 2)]


def test_all_pairs_are_ordered() -> None:
    assert couples("all_pairs") == couples("steps") == [(1, 0), (2, 0), (3, 0), (1, 2), (1, 3), (3, 2)]


def test_rso_accepts_by_exp_of_the_gap() -> None:
    """The best is always accepted, one a gap of beta ln 2 below it half of the time."""
    scores = [1.0, 1.0 - 0.5 * math.log(2)]
    share = sum(bool(couples("rso", scores, seed=seed)) for seed in range(4000)) / 4000
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 4000)
    assert all(couple == [(0, 1)] for seed in range(50) if (couple := couples("rso", scores, seed=seed)))


def test_win_rates_of_rewards() -> None:
    """sigmoid(1) = 0.731: of three rewards 0, 1, 1 the first wins 0.269, the others (0.731 + 0.5) / 2."""
    low = 1 / (1 + math.e)
    assert win_rates([0.0, 1.0, 1.0]) == pytest.approx([low, (1.5 - low) / 2, (1.5 - low) / 2])
    one = Scored([0.0, 1.0], chance=random.Random(0))
    function = RULES["win_rate"]
    assert function is not None
    assert function(one, PairOptions(rule="win_rate")) == [(1, 0)]
    assert one.scores == pytest.approx([low, 1 - low])
    kept = Scored([0.25, 0.75], wins=True)
    function(kept, PairOptions(rule="win_rate"))
    assert kept.scores == [0.25, 0.75]


def test_passing_over_failing_each_as_often() -> None:
    """Two pass and three fail: six couples, of which any prefix of three uses every failing one once."""
    scores = [1.0, 0.0, 1.0, 0.0, 0.0]
    found = couples("pass_fail", scores)
    assert sorted(found) == [(i, j) for i in (0, 2) for j in (1, 3, 4)]
    assert {worse for _, worse in found[:3]} == {1, 3, 4}
    assert couples("pass_fail", [1.0, 1.0]) == couples("pass_fail", [0.0, 0.2]) == []
    assert couples("pass_fail", [0.4, 0.2], threshold=0.3) == [(0, 1)]


def test_minimax_joins_code_to_tests() -> None:
    """Codes x tests: test 2 is wrong (only the worst code passes it), so the best code is joined to test 1.

    Votes 3, 2, 1. Code 0 passes tests 0 and 1 (two of three), code 2 passes 0 alone... and fails 1 and 2, the latter
    with fewer votes; code 1 passes all but the wrong one too, and comes after code 0.
    """
    passed = [[True, True, False], [True, True, False], [True, False, False], [False, False, True]]
    one = Scored([], passed=passed)
    function = RULES["minimax"]
    assert function is not None
    assert function(one, PairOptions(rule="minimax")) == [(0, 2)]
    assert list(one.scores) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert joined_tests(passed, (0, 2)) == (0, 2)
    assert joined_tests(passed, (0, 3)) == (0, 1)
    assert joined_tests([[False], [False]], (0, 1)) is None
    assert joined_tests([[True], [True]], (0, 1)) is None


def test_every_rule_says_what_it_is() -> None:
    assert all(describe(rule).endswith((".", ".)", ":")) and len(describe(rule)) > 20 for rule in RULES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best_wurst"}, "did you mean best_worst"),
        ({"min_margin": -1.0}, "min_margin: expected 0 or more, found -1.0"),
        ({"max_length_ratio": 0.5}, "max_length_ratio: expected 1 or more, found 0.5"),
        ({"unfinished": "maybe"}, "unfinished: expected drop or keep, found 'maybe'"),
        ({"beta": 0.0}, "beta: expected more than 0, found 0.0"),
        ({"min_margin": float("nan")}, "min_margin: expected a finite number, found nan"),
        ({"max_length_ratio": float("nan")}, "max_length_ratio: expected a finite number, found nan"),
        ({"min_margin": "0.1"}, "min_margin: expected .*, found '0.1'"),
        ({"dedupe": "no"}, "dedupe: expected .*, found 'no'"),
        ({"rule": None}, "rule: expected .*, found None"),
        ({"per_prompt": 1.5}, "per_prompt: expected .*, found 1.5"),
        ({"per_prompt": 0}, "per_prompt: expected at least 1, found 0"),
        ({"sigmas": 1.0}, "sigmas: the rule best_worst has no use for it; leave it out, or take rule best_sigma"),
        ({"beta": 1.0}, "beta: the rule best_worst has no use for it; leave it out, or take rule rso"),
        ({"rule": "best", "threshold": 1.0}, "threshold: the rule best has no use for it; .* take rule pass_fail"),
        ({"rule": "pass_fail", "least": 1.0}, "least: the rule pass_fail has no use for it; .* take rule best"),
        ({"rule": "lists", "max_length_ratio": 2.0}, "max_length_ratio: the rule lists has no use for it"),
        ({"rule": "lists", "gold": True}, "gold: the rule lists has no use for it"),
        ({"rule": "best", "gold": True}, "gold: the rule best has no use for it"),
        ({"rule": "human_own", "min_margin": 0.1}, "min_margin: the rule human_own has no use for it"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairOptions(**options)  # type: ignore[arg-type]
