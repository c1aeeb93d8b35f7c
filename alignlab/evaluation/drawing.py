"""Which held-out prompts are answered, and the answers that the policy draws to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.data import ScoredSequence, better_sequence
from alignlab.sampling import sample_answers

from .shares import share

SEED_STRIDE = 1_000_003  # seeds of the answers of one run do not meet those of the next


@dataclass(frozen=True)
class Sampling:
    """Which answers are drawn.

    Attributes:
        count: of different prompts, the first ones. samples: answers a prompt.
        seed: of the run; every answer has one of its own, made from it.
        max_new_tokens: of an answer.
        batch_size: answers at a time, when they are drawn and when they are scored; it changes none of them.
    """

    count: int
    samples: int = 1
    seed: int = 0
    max_new_tokens: int = 128
    batch_size: int = 16

    def seed_of(self, row: int, sample: int) -> int:
        """Returns the seed of one answer to a row."""
        return self.seed * SEED_STRIDE + row * self.samples + sample


@dataclass(frozen=True)
class Drawn:
    """An answer as it was drawn, the row of the data that it answers, and that row's number."""

    row: int
    sample: int
    fields: Mapping[str, Any]
    answer: ScoredSequence

    @property
    def source(self) -> str:
        """Where the row stands: "file.jsonl:12"."""
        return str(self.fields["source"])

    @property
    def better(self) -> ScoredSequence:
        """The completion that answers are held against: chosen, or the best of a list."""
        return better_sequence(self.fields)


def first_of_each_prompt(dataset: Any, count: int) -> list[int]:
    """Returns the rows that first hold each of the first ``count`` different prompts; of labelled rows, good ones."""
    places: dict[bytes, int] = {}
    good = dataset["label"] if "label" in dataset.column_names else [True] * len(dataset)
    for index, ids in enumerate(dataset.with_format("numpy")["prompt_ids"]):
        if good[index]:
            places.setdefault(np.asarray(ids, dtype=np.int64).tobytes(), index)
        if len(places) == count:
            break
    return list(places.values())


def draw(
    policy: nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Any, first: Sequence[int], sampling: Sampling
) -> list[Drawn]:
    """Returns this rank's share of the answers, which are the same whatever the batch size and the number of ranks.

    ``first`` are the rows that are answered, as ``first_of_each_prompt`` names them.
    """
    rows = dataset.with_format("numpy")
    mine = [divmod(index, sampling.samples) for index in share(len(first) * sampling.samples)]
    asked = [(first[prompt], sample, rows[first[prompt]]) for prompt, sample in mine]
    answers = sample_answers(
        policy,
        tokenizer,
        [fields["prompt_ids"] for _, _, fields in asked],
        [sampling.seed_of(row, sample) for row, sample, _ in asked],
        max_new_tokens=sampling.max_new_tokens,
        batch_size=sampling.batch_size,
    )
    return [Drawn(*one, answer) for one, answer in zip(asked, answers, strict=True)]
