"""The made-up task: its reward by hand, its rows the same on every machine, its splits apart."""

from __future__ import annotations

import doctest
import hashlib
import json
from typing import Any

from alignlab.data import DataOptions, prepare, toy


def test_rewards_by_hand() -> None:
    """The docstring's examples: 2 for the best answer, -2.5 for the worst well-formed one, -1.5 for babble."""
    found = doctest.testmod(toy)
    assert found.attempted >= 4
    assert found.failed == 0


def test_rows_depend_on_the_seed_alone() -> None:
    def digest(rows: Any) -> str:
        return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()

    assert digest(toy.pairs(50, 1)) == digest(toy.pairs(50, 1)) != digest(toy.pairs(50, 2))
    assert digest(toy.demonstrations(50, 1)) == digest(toy.demonstrations(50, 1))


def test_pairs_are_labelled_by_the_true_reward() -> None:
    rows: list[Any] = list(toy.pairs(400, 0))
    for row in rows:
        prompt, chosen, rejected = (row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
        assert toy.reward(prompt, chosen) == row["score_chosen"] > row["score_rejected"] == toy.reward(prompt, rejected)
        assert row["margin"] == row["score_chosen"] - row["score_rejected"]
        assert sum(row["rewards_chosen"].values()) == row["score_chosen"]
    counts = {name: sum(row["group"] == name for row in rows) for name in {row["group"] for row in rows}}
    assert len(counts) == 3
    assert max(counts.values()) > 2 * min(counts.values()), "groups of unequal size"


def test_lists_are_rated_by_the_true_reward(tokenizer: Any) -> None:
    """Four different answers to each prompt, not all equally good, which training takes as they are."""
    rows: list[Any] = list(toy.lists(60, 0))
    for row in rows:
        prompt, answers = row["prompt"][-1]["content"], [one[-1]["content"] for one in row["completions"]]
        assert [toy.reward(prompt, answer) for answer in answers] == row["scores"]
        assert (len(set(answers)), len(set(row["scores"])) > 1) == (4, True)
    assert toy.lists(60, 0) == rows != toy.lists(60, 1)
    assert {len(row["completions"]) for row in toy.lists(5, completions=7)} == {7}
    found = prepare(rows, tokenizer, DataOptions(kind="lists", rewards=2), progress=False)
    assert (found.report.rows_kept, found.report.completions_repeated) == (60, 0)


def test_held_out_questions_are_not_trained_on() -> None:
    def asked(rows: Any) -> set[str]:
        return {row["prompt"][-1]["content"] for row in rows}

    held = asked(toy.pairs(300, 0, "heldout")) | asked(toy.lists(50, 0, "heldout")) | set(toy.prompts(100, 0))
    assert not held & asked(toy.pairs(2000, 0))
    assert not held & asked(toy.demonstrations(2000, 0))
    assert not held & asked(toy.lists(500, 0))
