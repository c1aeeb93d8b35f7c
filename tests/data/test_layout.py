"""Rows of trees: each tree once, little padding, and no more rows than padding asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignlab.data.layout import MOST_PADDING, ScoredSequence, balanced_rows, layout_fields


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


def test_last_tokens_are_where_a_sequence_classifier_reads() -> None:
    """Token 9 pads: answers that end in it, are it alone, or hold it inside; the prompt's own end where it scores."""

    def one(prompt: list[int], *tokens: int) -> ScoredSequence:
        return ScoredSequence(np.array(prompt), np.array(tokens, dtype=np.int64), np.ones(len(tokens), dtype=bool))

    fields = {
        "chosen": [one([1, 2], 3, 4, 5), one([6, 9], 9), one([7], 8, 9, 2)],
        "rejected": [one([1, 2], 3, 9, 9), one([6, 9], 1), one([7], 5)],
    }
    plain = layout_fields(fields, 9, "padded")
    places = torch.arange(plain["input_ids"].shape[1])
    theirs = (places * (plain["input_ids"] != 9)).argmax(-1)  # as transformers finds the last token of a padded row
    ids = plain["input_ids"][torch.arange(6), theirs]
    assert ids.tolist() == [5, 3, 6, 1, 2, 5]  # row by row: chosen, rejected
    assert (plain["last"] % plain["input_ids"].shape[1]).view(2, 3).T.flatten().tolist() == theirs.tolist()
    for mode in ("padded", "rows", "flat"):
        found: Any = layout_fields(fields, 9, mode, score_prompt=True, row_length=8)
        tokens = found["input_ids"].flatten()[found["last"]].view(3, 3)
        assert tokens[:2].T.flatten().tolist() == ids.tolist(), mode
        assert tokens[2].tolist() == [2, 6, 7], mode
