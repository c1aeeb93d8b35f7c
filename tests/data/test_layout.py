"""Rows of trees: each tree once, little padding, and no more rows than padding asks for."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from alignlab.data.layout import MOST_PADDING, balanced_rows


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_rows_hold_each_tree_once_and_pad_little(sizes: list[int]) -> None:
    class Sized(list[int]):
        pass

    trees: Any = [Sized([0] * size) for size in sizes]
    rows = balanced_rows(trees, 30)
    assert sorted(len(tree) for row in rows for tree in row) == sorted(sizes)
    assert all(rows)
    width = max(sum(map(len, row)) for row in rows)
    assert sum(sizes) >= (1 - MOST_PADDING) * width * len(rows)


def test_rows_are_as_short_as_padding_allows() -> None:
    """10 + 10, 10 + 10 need no padding in two rows of 20; 19 + 10 + 10 would leave 1 of 40, 9 + 10 + 10 11 of 40."""
    for lengths, expected in (([10] * 4, [2, 2]), ([19, 10, 10], [1, 2]), ([9, 10, 10], [3])):
        trees: Any = [[0] * length for length in lengths]
        assert [len(row) for row in balanced_rows(trees, 20)] == expected
