"""Where wanted completions stand: keys once each, tokens only when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from making import make_rows

from alignlab.data import DataOptions, prepare, sequence, sequence_key
from alignlab.reference.places import Places

FIELDS = ("chosen", "rejected")


def test_each_completion_once_in_the_order_of_the_sets(tokenizer: Any) -> None:
    rows = make_rows(12)
    train = prepare([*rows, rows[3]], tokenizer, progress=False).dataset
    evaluation = prepare([rows[5], *make_rows(4, seed=1)], tokenizer, progress=False).dataset
    places = Places([(train, FIELDS), (evaluation, FIELDS[1:])])
    wanted = [sequence(row, field) for field in FIELDS for row in train] + [
        sequence(row, "rejected") for row in evaluation
    ]
    distinct = list(dict.fromkeys(sequence_key(one) for one in wanted))
    assert len(places) == len(distinct) == 24 + 4
    assert places.keys.tobytes() == b"".join(distinct)
    assert [sequence_key(one) for one in places.sequences(range(len(places)))] == distinct
    assert places.lengths().tolist() == [len(one.completion) for one in places.sequences(range(len(places)))]


def test_long_prompts_come_first_and_completions_of_one_prompt_together(tokenizer: Any) -> None:
    data = [{"prompt": prompt, "completion": text, "label": True} for prompt in ("a", "ask", "b", "tell") for text in
            ("x", "long", "mid")]  # fmt: skip
    places = Places([(prepare(data, tokenizer, DataOptions(kind="labelled"), progress=False).dataset, ["completion"])])
    order = places.by_prompt(np.arange(12))
    found = [(len(one.prompt), tokenizer.decode(one.prompt)) for one in places.sequences(order)]
    assert [length for length, _ in found] == sorted((length for length, _ in found), reverse=True)
    assert len({tuple(found[i : i + 3]) for i in range(0, 12, 3)}) == 4  # each prompt's three stand together
    assert all(len(set(found[i : i + 3])) == 1 for i in range(0, 12, 3))
    lengths = places.lengths()[order].reshape(4, 3)
    assert (np.diff(lengths) <= 0).all()
    some = places.by_prompt(np.array([11, 2, 7]))
    assert sorted(some.tolist()) == [2, 7, 11]


def test_completions_of_lists_stand_beside_those_of_pairs_once_each(tokenizer: Any) -> None:
    """Lists of 3 and 2 and a pair that the first of them holds: 5 completions, each with its own tokens."""
    lists = [
        {"prompt": "ask", "completions": ["x", "long", "mid"], "scores": [1, 2, 3]},
        {"prompt": "b", "completions": ["y", "z"], "rank": [1, 2]},
    ]
    pair = {"prompt": "ask", "chosen": "mid", "rejected": "x"}
    several = prepare(lists, tokenizer, DataOptions(kind="lists"), progress=False).dataset
    pairs = prepare([pair], tokenizer, progress=False).dataset
    for wanted in ([(several, ["completions"]), (pairs, FIELDS)], [(pairs, FIELDS), (several, ["completions"])]):
        places = Places(wanted)
        found = places.sequences(range(5))
        assert [sequence_key(one) for one in found] == [places.keys[n].tobytes() for n in range(5)]
        assert places.lengths().tolist() == [len(one.completion) for one in found]
        order = places.by_prompt(np.arange(5))
        assert [len(one.prompt) for one in places.sequences(order)] == [3, 3, 3, 1, 1]
