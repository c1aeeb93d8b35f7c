"""Which prompts are answered."""

from __future__ import annotations

from typing import Any

from making import make_rows

from alignlab.data import DataOptions, prepare, sequence
from alignlab.evaluation.dialogues import read_dialogues
from alignlab.evaluation.drawing import Drawn, first_of_each_prompt


def test_prompts_are_taken_once(tokenizer: Any) -> None:
    rows = make_rows(5)
    for one, other in ((1, 0), (3, 2)):
        rows[one]["prompt"] = rows[other]["prompt"]
    dataset = prepare(rows, tokenizer, progress=False).dataset
    assert first_of_each_prompt(dataset, 2) == [0, 2]
    assert first_of_each_prompt(dataset, 99) == [0, 2, 4]


def test_answers_are_held_against_the_best_of_a_list(tokenizer: Any) -> None:
    """Read from the token ids, and where the rows can be read again, from them."""
    rows = [{"prompt": f"p{n}", "completions": [" a", " b", " c"], "scores": [1, n, 2]} for n in range(4)]
    data = prepare(rows, tokenizer, DataOptions(kind="lists"), progress=False).dataset
    drawn = [Drawn(n, 0, row, sequence(row, "completions", 0)) for n, row in enumerate(data.with_format("numpy"))]
    texts = [tokenizer.decode(one.better.completion, skip_special_tokens=True) for one in drawn]
    assert texts == [" c", " c", " b", " b"]
    dialogues = read_dialogues(rows, {one.source for one in drawn})
    assert [dialogues[one.source] for one in drawn] == [(f"p{n}", text) for n, text in enumerate(texts)]
