"""Prompts that are nearly the same."""

import sys

import pytest

from alignlab.data.near import _shingles, near_duplicates

WORDS = [f"word{number}" for number in range(40)]
TEXTS = [
    ("a:1", " ".join(WORDS)),
    ("a:2", " ".join(reversed(WORDS))),
    ("a:3", " ".join([*WORDS, "more"]).upper()),  # 38 of 39 runs of three words are the first one's
    ("a:4", " ".join([*WORDS[:20], *reversed(WORDS[20:])])),  # 18 of 58
]


def test_runs_of_three_words():
    assert _shingles("One two  THREE four") == [b"one two three", b"two three four"]
    assert _shingles("one two") == [b"one two"]


def test_prompts_that_nearly_repeat_an_earlier_one():
    pytest.importorskip("datasketch")
    found = near_duplicates(TEXTS)
    assert (found.count, found.examples) == (1, (("a:3", "a:1"),))


def test_prompts_that_are_nearly_in_another_set():
    pytest.importorskip("datasketch")
    found = near_duplicates(TEXTS, [("b:1", TEXTS[1][1]), ("b:2", TEXTS[0][1])])
    assert found.examples == (("a:1", "b:2"), ("a:2", "b:1"), ("a:3", "b:2"))


def test_without_the_library_nothing_is_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)  # an import of it fails
    assert near_duplicates(TEXTS) is None
