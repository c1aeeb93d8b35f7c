"""What an engine is: prompts in, answers out; and the one that is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from alignlab.answers import Answer
from alignlab.data import AskedPrompt

from .local import sample_answers
from .options import SampleOptions
from .policy import Policy


class Engine(Protocol):
    """Draws answers to prompts.

    Attributes:
        name: which engine. model: the fingerprint of the model, or its name at an address.
        of: what answers depend on besides prompts, model and options.
    """

    name: str
    model: str
    of: dict[str, Any]

    def draw(self, prompts: Sequence[AskedPrompt]) -> list[list[Answer]]:
        """Returns the answers to each prompt, as many as the options say."""

    def check(self, prompts: Sequence[AskedPrompt]) -> None:
        """Finds out by some of the prompts whether this is the model, before any answer is kept."""


class SeededEngine:
    """``generate`` of transformers, each answer by a seed of its own: the default, and what others are measured by.

    An answer depends on the model, its prompt and its seed, and on no batch, rank or answer before it (in float32;
    in half precision logits move with the batch, and a rare token with them: then batches are the same from run to run,
    ranks and kills notwithstanding, as long as ``batch_size`` is).
    """

    name = "transformers"

    def __init__(self, policy: Policy, options: SampleOptions) -> None:
        self.policy, self.options, self.model, self.of = policy, options, policy.name, dict[str, Any]()
        self.bent = bending(options)

    def draw(self, prompts: Sequence[AskedPrompt]) -> list[list[Answer]]:
        """Returns the answers to each prompt."""
        asked = [(prompt, sample) for prompt in prompts for sample in range(self.options.samples)]
        seeds = [self.options.seed_of(prompt.id, sample) for prompt, sample in asked]
        drawn = sample_answers(
            self.policy.model,
            self.policy.tokenizer,
            [prompt.ids for prompt, _ in asked],
            None if self.options.greedy else seeds,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=self.options.batch_size,
            bent=self.bent,
        )
        ids = [one.completion.tolist() for one in drawn]
        found = [self._answers(*one) for one in zip(prompts, _portions(ids, self.options.samples), strict=True)]
        for row, portion in zip(found, _portions(seeds, self.options.samples), strict=True):
            for answer, seed in zip(row, portion, strict=True):
                answer.seed = None if self.options.greedy else seed
        return found

    def check(self, prompts: Sequence[AskedPrompt]) -> None:
        """Nothing is to be found out: it is the model."""

    def _answers(self, prompt: AskedPrompt, ids: Sequence[list[int]]) -> list[Answer]:
        return known_tokens(self.policy, prompt, ids)


def known_tokens(policy: Policy, prompt: AskedPrompt, drawn: Sequence[list[int]]) -> list[Answer]:
    """Returns answers of one prompt from their tokens, scored by the model itself."""
    logps = policy.logps(prompt.ids, drawn)
    return [
        Answer(policy.text(ids), ids, bool(ids) and ids[-1] in policy.ends, logp)
        for ids, logp in zip(drawn, logps, strict=True)
    ]


def bending(options: SampleOptions) -> list[Any]:
    """Returns what logits go through before the noise, in the order of ``generate``: temperature, top-k, top-p."""
    found: list[Any] = []
    if options.greedy:
        return found
    if options.temperature != 1:
        found.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        found.append(TopPLogitsWarper(options.top_p))
    return found


def _portions(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
