"""Rows of token ids: read as they are, refused where another tokenizer wrote them."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.data import DataOptions, prepare

ROW = {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 1], "rejected_ids": [9]}


def prepared(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    return list(prepare(rows, tokenizer, DataOptions(**options), progress=False).dataset)


def test_ids_stay_as_they_are(tokenizer: Any) -> None:
    """No end is put behind the rejected answer, which was cut off; a mask is taken where there is one."""
    [one] = prepared([ROW], tokenizer)
    assert {name: one[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": [5, 6], "chosen": [7, 8, 1], "rejected": [9],
    }  # fmt: skip
    assert one["chosen_mask"] == [True] * 3
    [one] = prepared([{**ROW, "chosen_mask": [0, 1, 1]}], tokenizer)
    assert one["chosen_mask"] == [False, True, True]


def test_ids_and_texts_mix_and_split(tokenizer: Any) -> None:
    """Beside a row of text; for a labelled loss a pair becomes its two halves, and completion_ids are read too."""
    text = {"prompt": "the cat", "chosen": " sees", "rejected": " likes"}
    assert [row["prompt_ids"] for row in prepared([text, ROW], tokenizer)][1] == [5, 6]
    halves = prepared([ROW, {"prompt_ids": [5], "completion_ids": [3, 1], "label": False}], tokenizer, kind="labelled")
    assert [(row["completion_ids"], row["label"]) for row in halves] == [
        ([7, 8, 1], True),
        ([9], False),
        ([3, 1], False),
    ]


def test_rows_of_ids_are_cut_like_others(tokenizer: Any) -> None:
    [one] = prepared([{**ROW, "chosen_ids": [7] * 10, "prompt_ids": [5] * 4}], tokenizer, max_length=8)
    assert len(one["prompt_ids"]) + len(one["chosen_ids"]) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected_ids": None}, "rejected_ids is missing beside the other ids"),
        ({"rejected_ids": [7, 8, 1]}, "chosen_ids and rejected_ids are equal"),
        ({"rejected_ids": []}, "rejected_ids must be a list of token ids, at least one"),
        ({"rejected_ids": [1.5]}, "rejected_ids must be a list of token ids, at least one"),
        ({"rejected_ids": [300]}, r"rejected_ids has the id 300; the tokenizer has \d+ tokens"),
        ({"rejected_ids": [-1]}, "rejected_ids has the id -1"),
        ({"chosen_mask": [1]}, "chosen_mask must be a list of 3 true or false, one for each id"),
        (
            {"chosen": "zzz"},
            "chosen_ids spell .* with this tokenizer, and chosen says 'zzz': another tokenizer wrote them",
        ),
    ],
)
def test_what_is_no_row_of_ids(change: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message):
        prepared([ROW | change], tokenizer)


def test_a_label_is_needed_where_no_pair_is(tokenizer: Any) -> None:
    row = {"prompt_ids": [5], "completion_ids": [3, 1]}
    with pytest.raises(ValueError, match="label is missing"):
        prepared([row], tokenizer, kind="labelled")
    with pytest.raises(ValueError, match="labelled rows were given to a loss that needs pairs"):
        prepared([row], tokenizer)


def test_nothing_of_a_sampled_pair_is_unread(tokenizer: Any) -> None:
    row = {**ROW, "prompt": "x", "margin": 1.0, "origin": {"round": 1}, "score_chosen": 2.0, "score_rejected": 1.0}
    report = prepare([row], tokenizer, progress=False).report
    assert not report.notes


LIST = {"prompt_ids": [5, 6], "completions_ids": [[7, 1], [8, 1], [9]], "scores": [0.5, 2.0, 1.0]}


def test_lists_of_ids(tokenizer: Any) -> None:
    """As a list, as its best over its worst, and a pair as a list of two."""
    [one] = prepared([LIST], tokenizer, kind="lists")
    assert (one["completions_ids"], one["scores"]) == ([[7, 1], [8, 1], [9]], [0.5, 2.0, 1.0])
    [one] = prepared([LIST], tokenizer)
    assert (one["chosen_ids"], one["rejected_ids"], one["score_chosen"]) == ([8, 1], [7, 1], 2.0)
    assert len(prepared([LIST], tokenizer, lists_as="all")) == 3
    [one] = prepared([{**ROW, "score_chosen": 2.0, "score_rejected": 1.0}], tokenizer, kind="lists")
    assert (one["completions_ids"], one["scores"]) == ([[7, 8, 1], [9]], [2.0, 1.0])


def test_answers_of_a_list_are_checked_like_others(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"completions\[0\]_ids spell .* and completions\[0\] says 'zzz'"):
        prepared([{**LIST, "completions": ["zzz"]}], tokenizer, kind="lists")
    with pytest.raises(ValueError, match="all 3 completions are equally good"):
        prepared([{**LIST, "scores": [1, 1, 1]}], tokenizer, kind="lists")
