"""Prompts that are nearly the same, found by MinHash: within a set, and between training and evaluation sets."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SIMILAR, PERMUTATIONS, SHINGLE, SHOWN = 0.8, 64, 3, 5


@dataclass(frozen=True)
class Near:
    """Prompts that are nearly the same as another one.

    Attributes:
        count: prompts that have such another.
        examples: (a prompt's place, the other's place) of the first few.
    """

    count: int
    examples: tuple[tuple[str, str], ...]


def near_duplicates(prompts: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]] | None = None) -> Near | None:
    """Finds prompts that share about four fifths of their runs of three words with another one.

    ``Jaccard(A, B) = |A & B| / |A | B|`` over each prompt's set of three-word runs (lower case), estimated from 64
    MinHash values and found by locality-sensitive hashing: near 0.8 a pair may be missed or added (standard error of an
    estimate: ``sqrt(J (1 - J) / 64)``, 0.05 at 0.8).

    Args:
        prompts: (place, text), each text once.
        others: compare with these in place of the prompts before.

    Returns:
        What was found; None where the package datasketch is not installed.
    """
    try:
        from datasketch import MinHashLSH
    except ImportError:
        return None
    index = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)
    if others is not None:
        for number, hashed in enumerate(_hashed(others)):
            index.insert(number, hashed, check_duplication=False)
    known = prompts if others is None else others
    count = 0
    examples: list[tuple[str, str]] = []
    for number, hashed in enumerate(_hashed(prompts)):
        found = index.query(hashed)
        if found:
            count += 1
            if len(examples) < SHOWN:
                examples.append((prompts[number][0], known[min(found)][0]))
        if others is None:
            index.insert(number, hashed, check_duplication=False)
    return Near(count, tuple(examples))


def _hashed(prompts: Sequence[tuple[str, str]]) -> Iterator[Any]:
    from datasketch import MinHash

    blank = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    for _, text in prompts:
        hashed = blank.copy()
        hashed.update_batch(_shingles(text))
        yield hashed


def _shingles(text: str) -> list[bytes]:
    words = text.lower().split()
    runs = {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}
    return [run.encode("utf-8", "replace") for run in sorted(runs)]
