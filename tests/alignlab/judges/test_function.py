"""Functions as judges: rewards, and comparisons asked in both orders."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.judges import Comparison, Verdict
from alignlab.judges.function import FunctionJudge

GOOD, BAD = "a good answer", "a bad answer"
ONE = Comparison("Why?", GOOD, BAD)


def test_reward_function() -> None:
    judge = FunctionJudge(lambda prompt, completion: len(completion))
    won, tied, lost = judge([Comparison("p", "aaa", "a"), Comparison("p", "b", "a"), Comparison("p", "a", "aa")])
    assert won == Verdict(1.0, 3.0, 1.0)
    assert tied == Verdict(0.5, 1.0, 1.0)
    assert lost == Verdict(0.0, 1.0, 2.0)


def test_comparing_function_is_asked_in_both_orders() -> None:
    """One that always prefers the first has no opinion; one that prefers the longer text has the same both ways."""
    first = FunctionJudge(lambda prompt, one, other: 1.0)([ONE])
    assert first == [Verdict(0.5, note="the orders disagree")]
    longer = FunctionJudge(lambda prompt, one, other: float(len(one) > len(other)))
    assert [verdict.outcome for verdict in longer([ONE, Comparison("p", "a", "bb")])] == [1.0, 0.0]
    assert FunctionJudge(lambda prompt, one, other: 0.5)([ONE]) == [Verdict(0.5)]


@pytest.mark.parametrize("value", [None, float("nan"), True, "1"])
def test_a_reward_is_a_finite_number(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        FunctionJudge(lambda prompt, completion: value, "mine")([ONE])


def test_a_comparison_is_between_nought_and_one() -> None:
    with pytest.raises(ValueError, match=r"returned 2\.0; a comparison returns 0 to 1"):
        FunctionJudge(lambda prompt, one, other: 2.0)([ONE])
