"""Distinct-n and self-BLEU of texts whose n-grams can be counted by hand."""

import math

import pytest

from alignlab.metrics import formulas


def test_diversity():
    """ "a b a" and "a b": 5 words of 2 kinds, bigrams ab, ba, ab: 2 of 3 differ.

    BLEU of "a b" against "a b a": all its n-grams stand there, length 2 against 3: exp(1 - 3/2). BLEU of "a b a"
    against "a b": unigrams a, b clipped to 2 of 3, bigrams 1 of 2, trigram none: 0.
    """
    found = formulas.diversity(["a b a", "a b"], orders=(1, 2))
    assert found["distinct_1"] == pytest.approx(2 / 5)
    assert found["distinct_2"] == pytest.approx(2 / 3)
    assert found["unique"] == 1
    assert found["self_bleu"] == pytest.approx(math.exp(-0.5) / 2)


def test_self_bleu_with_partial_overlap():
    """ "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, same length: (1/5)^(1/4), both ways."""
    scores = formulas.self_bleu([list("abcde"), list("abcdf")])
    assert scores == pytest.approx([0.2**0.25] * 2)
    assert formulas.self_bleu([["x"] * 6] * 3) == pytest.approx([1, 1, 1])
    assert formulas.self_bleu([list("abcd"), list("efgh")]) == [0, 0]
    assert formulas.self_bleu([[], [], ["a"]]) == [1, 1, 0]


def test_self_bleu_leaves_the_text_itself_out():
    """Three texts, clipped by the most that any one of the *others* has: "a a" finds one a elsewhere: 1/2."""
    scores = formulas.self_bleu([["a", "a"], ["a", "b"], ["c"]], order=1)
    assert scores == pytest.approx([1 / 2, 1 / 2, 0])


def test_diversity_within_groups():
    """Alike within each prompt, different between them: no diversity within, which all texts together would hide."""
    texts = ["one two three four"] * 2 + ["five six seven eight"] * 2
    within = formulas.diversity(texts, ["p", "p", "q", "q"])
    assert within["self_bleu"] == pytest.approx(1)
    assert within["unique"] == 0.5
    assert within["distinct_1"] == 0.5
    assert math.isnan(formulas.diversity(texts, ["p", "q", "r", "s"])["self_bleu"])
