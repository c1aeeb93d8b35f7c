"""Statistics by hand, with and without a tokenizer, and the tables that show them."""

import io

import pytest
from rich.console import Console

from alignlab.data import DataOptions, check, render

ROWS = [
    {"prompt": "ask", "chosen": "aaaa", "rejected": "b", "group": "x"},
    {"prompt": "ask", "chosen": "aa", "rejected": "bb", "group": "x"},
    {"prompt": "asking", "chosen": "a", "rejected": "bbb", "group": "y"},
    {"prompt": "asking", "chosen": "a", "rejected": "bbb", "group": "y"},
    {"prompt": "ask", "chosen": "[b]", "rejected": "[b]", "group": "y"},
]


def shown(found):
    console = Console(file=io.StringIO(), width=160)
    console.print(render(found))
    return console.file.getvalue()


def test_pairs_without_a_tokenizer_are_counted_in_bytes():
    found = check(ROWS, progress=False)
    assert (found.kind, found.unit) == ("pairs", "bytes")
    assert (found.report.rows_read, found.report.rows_kept, found.report.rows_rejected) == (5, 4, 1)
    assert found.lengths["prompt"].quantiles == (3, 3, 3, 6, 6)
    assert found.lengths["chosen"].quantiles == (1, 1, 1, 4, 4)
    assert found.lengths["chosen"].mean == 2.0
    assert found.lengths["rejected"].mean == 2.25
    assert found.lengths["prompt + longest completion"].quantiles == (5, 5, 7, 9, 9)
    assert (found.bias.longer, found.bias.equal, found.bias.shorter, found.bias.difference) == (0.25, 0.25, 0.5, -0.25)
    assert (found.distinct_prompts, found.report.duplicates, found.groups) == (2, 1, {"x": 2, "y": 2})


def test_with_a_tokenizer_lengths_are_tokens_with_eos(tokenizer):
    found = check(ROWS, tokenizer, progress=False)
    assert found.unit == "tokens"
    assert found.lengths["chosen"].mean == 3.0
    found = check(ROWS, tokenizer, DataOptions(max_length=6), progress=False)
    assert found.report.rows_truncated == 3


def test_labelled_rows():
    rows = [
        {"prompt": "ask", "completion": "a" * length, "label": label}
        for length, label in ((3, True), (5, True), (3, False), (4, False))
    ]
    found = check(rows, progress=False)
    assert (found.kind, found.labels) == ("labelled", {True: 2, False: 2})
    # 3 against 3 and 4: equal, shorter; 5 against 3 and 4: longer, longer
    assert (found.bias.longer, found.bias.equal, found.bias.shorter, found.bias.difference) == (0.5, 0.25, 0.25, 0.5)
    assert check(rows[:2], progress=False).bias is None


def test_conversations_need_no_tokenizer():
    turns = [{"role": "user", "content": "é?"}]
    rows = [{"prompt": turns, "chosen": "yes", "rejected": "no"}]
    found = check(rows, progress=False)
    assert found.lengths["prompt"].quantiles[0] == len("user: é?\nassistant: ".encode())


def test_tables_show_what_was_found():
    text = shown(check(ROWS, progress=False))
    for part in (
        "Rows (pairs)",
        "Lengths in bytes",
        "Groups",
        "Bad rows (1)",
        "chosen and rejected are equal",
        "row 4",
    ):
        assert part in text
    assert (
        "chosen is longer than rejected in 25.0%, equal in 25.0%, shorter in 50.0%; mean difference -0.2 bytes" in text
    )


def test_brackets_in_rows_are_shown_as_they_are():
    rows = [*ROWS[:1], {"prompt": [{"role": "[bold]", "content": "x"}], "chosen": "a", "rejected": "b"}]
    assert "unknown role '[bold]'" in shown(check(rows, progress=False))


def test_nothing_good_is_an_error():
    with pytest.raises(ValueError, match="no row is left to train on"):
        check(ROWS[4:], progress=False)
