"""The plan of a flat row: plain causal sequences worked out from lengths."""

from __future__ import annotations

import torch

from alignlab.data import AttentionPlan, attention_plan


def parts(plan: AttentionPlan) -> list[list[int]]:
    return [part.tolist() for part in plan.parts()]


def test_a_plan_by_hand() -> None:
    """A prompt of 2 with completions of 2, 1 and 0, then a prompt of 1 with one of 2: row 0 1 | 2 3 | 4 || 5 | 6 7.

    Sequences: queries 0..3 over keys 0..3; query 4 over keys 0, 1, 4; queries 5..7 over themselves. An empty
    completion makes none. Gathered keys 4 and 5 are copies of tokens 0 and 1.
    """
    plan = attention_plan([[2, 2, 1, 0], [1, 2]])
    starts, keys, gathered, own, copies = parts(plan)
    assert starts == [0, 4, 5, 8]
    assert keys == [0, 4, 7, 10]
    assert gathered == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7]
    assert own == [0, 1, 2, 3, 6, 7, 8, 9]
    assert copies == [4, 5]
    assert plan[1:] == (8, 3, 4, 4)
    assert plan.table.dtype == torch.int32


def test_chunks_by_hand() -> None:
    """Chunks of 2 positions, a prompt of 3 with completions of 2 and 3: row 0 1 2 | 3 4 | 5 6 7.

    The second completion's first token stands at position 3, in the chunk of the prompt's last token.
    """
    starts, keys, gathered, own, copies = parts(attention_plan([[3, 2, 3]], 2))
    assert starts == [0, 2, 4, 5, 6, 8]
    assert gathered == [0, 1, 2, 3, 4, 2, 5, 6, 7]
    assert keys == [0, 2, 4, 5, 7, 9]
    assert own == [0, 1, 2, 3, 4, 6, 7, 8]
    assert copies == [5]


def test_a_table_that_is_made_already_is_taken() -> None:
    plan = attention_plan([[2, 2, 1], [1, 2]])
    again = attention_plan([[2, 2, 1], [1, 2]], table=plan.table)
    assert again.table is plan.table
    assert again == plan
