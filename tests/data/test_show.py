"""Rows as the model will see them: what counts in green, the rest dimmed, nothing that steers a terminal."""

import io

import pytest
from rich.console import Console

from alignlab.data import DataOptions, peek
from alignlab.data.shown import printable

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Yes."}
BAD = {"role": "assistant", "content": "No."}
ROWS = [
    {"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD], "margin": 2},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]},
    {"prompt": "a\x1b[31mb", "chosen": "\u202ex", "rejected": "[bold]y\n\tz"},
]


def spans(group):
    """The stretches of each row's text with their style."""
    return [[(text.plain[span.start : span.end], str(span.style)) for span in text.spans] for text in group.renderables]


def test_what_counts_is_marked(tokenizer):
    first, bad, *_ = spans(peek(ROWS, 2, tokenizer))
    assert first == [
        ("row 0\n", "bold"),
        ("prompt (22)\n", "bold"),
        ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n\n", "cyan"),
        ("chosen (34, of which 12 count)\n", "bold"),
        ("Yes.<|im_end|>\n", "green"),
        ("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", "dim"),
        ("Yes.<|im_end|>\n", "green"),
        ("rejected (5, of which 5 count)\n", "bold"),
        ("No.<|im_end|>\n", "green"),
    ]
    assert bad == []


def test_bad_rows_are_shown_with_the_reason_and_columns_by_name(tokenizer):
    shown = peek(ROWS[:2], 5, tokenizer)
    assert [text.plain for text in shown.renderables][1:] == ["row 1: chosen and rejected are equal"]
    assert "row 0\nmargin: 2.0\nprompt" in shown.renderables[0].plain


def test_only_so_many_rows_are_read_whatever_the_files(write):
    one, two = write(ROWS[:1], "one.jsonl"), write(ROWS[2:], "two.jsonl")
    texts = [text.plain.splitlines()[0] for text in peek([one, two], 1).renderables]
    assert texts == [f"{one}:1"]
    texts = [text.plain.splitlines()[0] for text in peek([one, two], 9).renderables]
    assert texts[:2] == [f"{one}:1", f"{two}:1"]


def test_control_characters_are_spelled():
    assert printable("a\x1b[31m\r\n\t\u202e\ud83dé") == "a\\x1b[31m\\r\n\t\\u202e\\ud83dé"
    console = Console(file=io.StringIO(), width=100, force_terminal=True, no_color=True)
    console.print(peek(ROWS[2:], 1), markup=False, highlight=False)
    text = console.file.getvalue()
    assert "a\\x1b[31mb" in text
    assert "\\u202ex" in text
    assert "[bold]y\n\tz".expandtabs() in text.expandtabs()


def test_what_training_is_told_is_shown(tokenizer):
    shown = peek(ROWS[2:], 1, tokenizer, DataOptions(max_length=5))
    assert "prompt (4)" in shown.renderables[0].plain


def test_labelled_rows():
    shown = peek([{"prompt": "p", "completion": "c", "label": True}], 1)
    assert shown.renderables[0].plain == "row 0\nlabel: True\nprompt (1)\np\ncompletion (1, of which 1 count)\nc\n"


def test_nothing_good_is_an_error():
    with pytest.raises(ValueError, match="no row is left to train on"):
        peek(ROWS[1:2], 1)
