"""Which prompts are answered."""

from __future__ import annotations

from typing import Any

from making import make_rows

from alignlab.data import prepare
from alignlab.evaluation.drawing import first_of_each_prompt


def test_prompts_are_taken_once(tokenizer: Any) -> None:
    rows = make_rows(5)
    for one, other in ((1, 0), (3, 2)):
        rows[one]["prompt"] = rows[other]["prompt"]
    dataset = prepare(rows, tokenizer, progress=False).dataset
    assert first_of_each_prompt(dataset, 2) == [0, 2]
    assert first_of_each_prompt(dataset, 99) == [0, 2, 4]
