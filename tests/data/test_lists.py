"""Rows of several answers, read as the best and the worst of them."""

import pytest

from alignlab.data.formats import parse_row
from alignlab.data.options import DataOptions
from alignlab.data.schema import RowError

ROW = {"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [1, 3.5, -2, 3.5]}


def test_the_best_and_the_worst_are_taken_and_the_first_of_equal_ones():
    row = parse_row(ROW, DataOptions(lists_as="best_worst"))
    assert row.completions == {"chosen": [("b", True)], "rejected": [("c", True)]}
    assert row.columns == {"score_chosen": 3.5, "score_rejected": -2.0}


def test_of_ranks_one_is_the_best_and_no_column_is_made():
    row = parse_row({**ROW, "scores": None, "ranks": [2, 1, 3, 3]}, DataOptions())
    assert row.completions == {"chosen": [("b", True)], "rejected": [("c", True)]}
    assert row.columns == {}


def test_rewards_follow_their_answers():
    row = parse_row({**ROW, "rewards": [[0, 0], [1, 2], [3, 4], [5, 6]]}, DataOptions())
    assert (row.columns["rewards_chosen"], row.columns["rewards_rejected"]) == ([1.0, 2.0], [3.0, 4.0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completions": "a"}, "completions must be a list of two answers or more"),
        ({"completions": ["a"]}, "completions must be a list of two answers or more"),
        ({"scores": None}, r"scores \(or ranks\) is missing beside completions"),
        ({"scores": [1, 2, 3, float("nan")]}, "scores must be a list of finite numbers"),
        ({"scores": [1, 2, 3]}, "completions has 4 answers and scores 3 numbers"),
        ({"scores": [2, 2, 2, 2]}, "all 4 scores are 2: no answer is better than another"),
        ({"rewards": [[1]]}, "rewards must be a list with an entry for each of the 4 completions"),
        ({"completions": ["a", "b", "b", "d"]}, "chosen and rejected are equal"),
    ],
)
def test_lists_that_are_no_pair_say_why(change, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(ROW | change, DataOptions())


def test_options_allow_what_is_there():
    with pytest.raises(ValueError, match="lists_as must be one of best_worst; found 'all'"):
        DataOptions(lists_as="all")
