"""Texts tokenised word by word have the ids that the tokenizer gives them whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from alignlab.data import words as module
from alignlab.data.words import PATTERNS, Words, words_of

LESSON = "the quick brown fox don't I'LL 123 4567   spaces\n\n\ttabs; x==y();\r\n"
PIECES = ["a", "the", "quick", "'s", "'LL", "'", '"', " ", "  ", "\n", "\r\n", "\t", "1", "23", "4567", ";", "==", "_"]
PIECES += ["<|im_start|>", "<|im_end|>", "<|im", "é", "日本", "\x0b", "\x1f", "\u00a0"]


def learned(pattern=PATTERNS[0], tokens=("<|im_start|>", "<|im_end|>", "<|im")):
    """A byte-level BPE tokenizer of 400 tokens, whose added tokens overlap."""
    made = Tokenizer(models.BPE())
    if pattern == PATTERNS[0]:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        end = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, end])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(tokens), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([LESSON] * 3, trainer)
    return made


def whole(backend, texts):
    return [one.ids for one in backend.encode_batch(texts, add_special_tokens=False)]


BACKENDS = [learned(pattern) for pattern in PATTERNS]
WORDS = [words_of(backend) for backend in BACKENDS]


@pytest.mark.parametrize("which", range(len(PATTERNS)))
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), max_size=8))
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_the_whole_text(which, texts):
    words = WORDS[which]
    assert words(texts) == whole(BACKENDS[which], texts)
    assert words.trusted


def test_a_word_is_asked_for_once(monkeypatch):
    """And what is not plain ASCII whole, and the first text that is, each time."""
    texts = ["é", "fox the<|im_end|> fox", "the fox"]
    words, asked = words_of(BACKENDS[0]), []
    monkeypatch.setattr(words, "_whole", lambda texts: asked.append(sorted(texts)) or whole(BACKENDS[0], texts))
    for _ in range(2):
        assert words(texts) == whole(BACKENDS[0], texts)
    assert asked == [[" fox", " the", "fox", "the"], [texts[1]], ["é"], [], [texts[1]], ["é"]]


def test_a_tokenizer_of_another_mind_is_asked_for_all():
    """Cut at every character, as it is said to do here, no text has the ids that it has: the first one shows it."""
    words = Words(BACKENDS[0], r"\p{L}|\p{N}|[^\s\p{L}\p{N}]|\s")
    texts = ["é", "a", "the fox"]
    assert words(texts[:2]) == whole(BACKENDS[0], texts[:2])
    assert words.trusted
    assert words(["é", "the fox", "a"]) == whole(BACKENDS[0], ["é", "the fox", "a"])
    assert not words.trusted
    assert words(texts) == whole(BACKENDS[0], texts)


def test_what_is_remembered_is_bounded(monkeypatch):
    """A word of every batch is asked for once; of those that came once, the last ten to twenty are remembered."""
    monkeypatch.setattr(module, "REMEMBERED", 10)
    words, asked = words_of(BACKENDS[0]), []
    monkeypatch.setattr(words, "_whole", lambda texts: asked.extend(texts) or whole(BACKENDS[0], texts))
    for number in range(100):
        texts = [f"{number} the", f"fox {number}"]
        assert words(texts) == whole(BACKENDS[0], texts)
    assert max(len(words._known), len(words._former)) <= 10 + 4
    assert asked.count(" the") == 1
    assert "99" in words._known
    assert "50" not in words._known.keys() | words._former.keys()


def test_a_batch_does_not_go_through_all_that_is_remembered():
    class Asked(dict):
        def keys(self):
            raise AssertionError("every word that is remembered is looked at")

        __iter__ = items = values = keys

    words = words_of(BACKENDS[0])
    words._known = Asked(words._known)
    assert words(["the quick fox", "fox 4567"]) == whole(BACKENDS[0], ["the quick fox", "fox 4567"])
    assert words._known.get("the") == whole(BACKENDS[0], ["the"])[0]


def changed(**values):
    backend = learned()
    for name, value in values.items():
        setattr(backend, name, value)
    return backend


def with_token(**flags):
    backend = learned()
    backend.add_tokens([AddedToken("<more>", **flags)])
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        changed(normalizer=normalizers.Lowercase()),
        changed(pre_tokenizer=pre_tokenizers.Whitespace()),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        changed(pre_tokenizer=None),
        changed(encode_special_tokens=True),
        learned(r"\w+|\W+"),
        with_token(lstrip=True, normalized=False),
        with_token(normalized=True),
        Tokenizer(models.WordLevel({"a": 0}, "a")),
    ],
)
def test_other_tokenizers_are_left_alone(backend):
    assert words_of(backend) is None
