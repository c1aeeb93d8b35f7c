"""How much texts differ from one another, by the n-grams that they share: distinct-n and self-BLEU."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .statistics import Figures


def diversity(
    texts: Sequence[str], groups: Sequence[Any] | None = None, orders: Sequence[int] = (1, 2, 3, 4)
) -> Figures:
    """How much texts differ from one another.

    distinct_n = different n-grams / all n-grams over all texts; unique = different texts / texts; self_bleu = mean BLEU
    of each text against all the others (1: all alike). Tokens are words and punctuation marks, in their case. With
    ``groups`` (the prompt of each text, say) every figure is taken within each group, and the mean over groups is
    returned; groups of one text have no self-BLEU.

    Source: Li et al. 2016 (distinct-n); Zhu et al. 2018, "Texygen" (self-BLEU).

    Raises:
        ValueError: no texts, or groups of another number.
    """
    if not len(texts) or (groups is not None and len(groups) != len(texts)):
        raise ValueError(f"expected texts, and a group for each; found {len(texts)} and {len(groups or ())}")
    members = defaultdict(list)
    for text, group in zip(texts, groups if groups is not None else [""] * len(texts), strict=True):
        members[group].append(words(text))
    parts: dict[str, list[float]] = defaultdict(list)
    for several in members.values():
        for order in orders:
            grams = [gram for tokens in several for gram in _ngrams(tokens, order)]
            if grams:
                parts[f"distinct_{order}"].append(len(set(grams)) / len(grams))
        parts["unique"].append(len(set(map(tuple, several))) / len(several))
        if len(several) > 1:
            parts["self_bleu"].append(float(np.mean(self_bleu(several))))
    wanted = [*(f"distinct_{order}" for order in orders), "unique", "self_bleu"]
    return {name: float(np.mean(parts[name])) if parts[name] else np.nan for name in wanted}


def self_bleu(texts: Sequence[Sequence[str]], order: int = 4) -> list[float]:
    """Returns BLEU of each tokenised text with all the others as its references, without smoothing.

    BLEU = min(1, exp(1 - r / c)) exp(mean_n log p_n) for n up to ``order``, or up to the text's length where that is
    shorter; p_n is the clipped n-gram precision, c the text's length, r the nearest length among the others (the
    shorter of two as near). An empty text scores 1 against an empty one, else 0.

    Source: Papineni et al. 2002, section 2.

    Raises:
        ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares texts with one another; found {len(texts)}")
    counts = [[Counter(_ngrams(tokens, n)) for n in range(1, order + 1)] for tokens in texts]
    highest = [_two_highest(counted[n] for counted in counts) for n in range(order)]
    lengths = [len(tokens) for tokens in texts]
    spread = Counter(lengths)
    scores = []
    for index, counted in enumerate(counts):
        length = lengths[index]
        others = [one for one, texts_of_it in spread.items() if texts_of_it > (one == length)]
        if length == 0:
            scores.append(float(0 in others))
            continue
        nearest = min(others, key=lambda one: (abs(one - length), one))
        logs = []
        for n in range(min(order, length)):
            clipped = sum(
                min(count, best if owner != index else second)
                for gram, count in counted[n].items()
                for owner, best, second in [highest[n][gram]]
            )
            logs.append(np.log(clipped / (length - n)) if clipped else -np.inf)
        scores.append(float(np.exp(np.mean(logs) + min(0.0, 1 - nearest / length))))
    return scores


def _two_highest(counters: Iterable[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Returns, for each n-gram, whose count is highest, that count, and the highest count of anybody else."""
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, counter in enumerate(counters):
        for gram, count in counter.items():
            owner, best, second = highest.get(gram, (-1, 0, 0))
            highest[gram] = (index, count, best) if count > best else (owner, best, max(second, count))
    return highest


def words(text: str) -> list[str]:
    """Returns the words and punctuation marks of a text."""
    return re.findall(r"\w+|[^\w\s]", text)


def _ngrams(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
