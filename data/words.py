"""Ids of words, remembered: a tokenizer that cuts texts into words first is asked for each word once."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, models, normalizers

Ids = list[int]

REMEMBERED = 10_000  # words; then those are forgotten that did not come again since it was last so many
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_TAIL = r"\s+(?!\S)|\s+"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_TAIL}"
_GPT4 = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_TAIL}"
)
PATTERNS = (_GPT2, _GPT4 % "", _GPT4 % "{1,3}")
"""How GPT-2, Qwen and Llama 3 cut texts into words, and most that came after them."""

_OTHER = re.compile(r"[^\n\r\t -~]")  # classes of characters beyond these differ from one engine to the next


class Words:
    """Tokenises texts word by word.

    A byte-level BPE tokenizer cuts a text at its added tokens, then into words by a regular expression, and merges
    within words alone, so that the ids of a text are those of its words, one after the other. Most words come again and
    again, and to look one up takes a third of the time. Texts with more than plain ASCII go to the tokenizer whole. Of
    every batch the first of the others does too: where its ids differ, the tokenizer is asked for all, from then on.

    Numbers and names that come once are soon forgotten: 150,000 of them, strewn over the memory that every batch uses,
    make a batch a tenth slower.

    Args:
        backend: the tokenizer. pattern: how it cuts texts into words, one of ``PATTERNS``.
    """

    def __init__(self, backend: Tokenizer, pattern: str) -> None:
        self.backend, self.trusted = backend, True
        ascii_only = re.sub(r"\[\^([^\]]*)\\p\{L\}\\p\{N\}\]", r"[^\1A-Za-z0-9]", pattern)
        self._word = re.compile(ascii_only.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)
        self._added = {token.content: [id_] for id_, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, self._added), key=lambda text: (-len(text), text))
        self._cut = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._known: dict[str, Ids] = dict(self._added)
        self._former: dict[str, Ids] = {}

    def __call__(self, texts: list[str]) -> list[Ids]:
        """Returns the ids of texts, without special tokens around them."""
        if not (self.trusted and texts):
            return self._whole(texts)
        words = [None if _OTHER.search(text) else self._words(text) for text in texts]
        self._learn(set(chain.from_iterable(filter(None, words))))
        found = [None if some is None else self._joined(some) for some in words]
        first = next((number for number, ids in enumerate(found) if ids is not None), None)
        if first is not None and [found[first]] != self._whole([texts[first]]):
            self.trusted = False
            return self._whole(texts)
        rest = iter(self._whole([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(rest) if ids is None else ids for ids in found]

    def _words(self, text: str) -> list[str]:
        words, start = [], 0
        for match in self._cut.finditer(text):
            words += self._word.findall(text, start, match.start())
            words.append(match[0])
            start = match.end()
        return words + self._word.findall(text, start)

    def _learn(self, words: set[str]) -> None:
        if len(self._known) > REMEMBERED:
            self._former, self._known = self._known, dict(self._added)
        # A set less the keys of a dict would go through all that is remembered, for every batch.
        missing = [word for word in words if word not in self._known]
        self._known.update((word, self._former[word]) for word in missing if word in self._former)
        new = [word for word in missing if word not in self._former and self._word.findall(word) == [word]]
        self._known.update(zip(new, self._whole(new), strict=True))

    def _joined(self, words: list[str]) -> Ids | None:
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, words)))
        except KeyError:  # a word that alone would be cut again
            return None

    def _whole(self, texts: list[str]) -> list[Ids]:
        return [one.ids for one in self.backend.encode_batch_fast(texts, False, False)] if texts else []


def words_of(backend: Tokenizer) -> Words | None:
    """Returns what tokenises word by word, or None for a tokenizer of which it is not known that it does."""
    model, added = backend.model, list(backend.get_added_tokens_decoder().values())
    pattern = _pattern(backend.pre_tokenizer)
    if pattern is None or not isinstance(model, models.BPE) or model.dropout or backend.encode_special_tokens:
        return None
    if backend.normalizer is not None and not isinstance(backend.normalizer, normalizers.NFC):  # ASCII stays as it is
        return None
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    return Words(backend, pattern) if len({token.normalized for token in added}) < 2 else None


def _pattern(cutter: Any) -> str | None:
    """Returns the expression by which a byte-level tokenizer cuts texts into words, if it is one of ``PATTERNS``."""
    if cutter is None:
        return None
    try:
        state = json.loads(cutter.__getstate__())
    except Exception:  # one that was written in Python has none
        return None
    *before, last = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if not before and bytes_alone | {"use_regex": True} == {name: last.get(name) for name in bytes_alone}:
        return _GPT2
    if bytes_alone != {name: last.get(name) for name in bytes_alone}:
        return None
    cuts = [{"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False} for one in PATTERNS]
    return PATTERNS[cuts.index(before[0])] if len(before) == 1 and before[0] in cuts else None
