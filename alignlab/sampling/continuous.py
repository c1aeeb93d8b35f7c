"""Continuous batching of transformers as an engine: answers come and go in one running batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from alignlab.answers import Answer
from alignlab.data import AskedPrompt

from .engine import known_tokens
from .options import SampleOptions
from .policy import Policy


class ContinuousEngine:
    """``generate_batch`` of transformers: made for GPUs and unequal lengths; answers have no seeds of their own.

    One seed serves a shard of prompts, made from its prompts: the same shard draws the same answers on one machine, and
    another ``batch_size`` draws others. Log-probabilities are those of our own scorer; ``gaps`` holds how far the
    engine's are from them, the largest of each answer, where nothing bends the distribution.
    """

    name = "continuous"

    def __init__(self, policy: Policy, options: SampleOptions) -> None:
        self.policy, self.options, self.model = policy, options, policy.name
        self.of: dict[str, Any] = {"batch_size": options.batch_size}
        self.gaps: list[float] = []

    def draw(self, prompts: Sequence[AskedPrompt]) -> list[list[Answer]]:
        """Returns the answers to each prompt.

        Raises:
            ValueError: the engine lost an answer, and why.
        """
        count = self.options.samples
        requests = [prompt.ids for prompt in prompts for _ in range(count)]
        drawn = self._generated(requests, self._seed(prompts))
        found = []
        for index, prompt in enumerate(prompts):
            some = drawn[index * count : (index + 1) * count]
            answers = known_tokens(self.policy, prompt, [ids for ids, _ in some])
            if self.options.temperature == 1 and self.options.top_p == 1 and not self.options.top_k:
                self.gaps += [
                    abs(sum(logps) - one.logp)
                    for one, (_, logps) in zip(answers, some, strict=True)
                    if one.logp is not None
                ]
            found.append(answers)
        return found

    def check(self, prompts: Sequence[AskedPrompt]) -> None:
        """Nothing is to be found out: every answer is scored by the model itself."""

    def _generated(self, requests: list[list[int]], seed: int) -> list[tuple[list[int], list[float]]]:
        """Returns tokens and their log-probabilities, in the order of the requests."""
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model: Any = self.policy.model
        before = model.config._attn_implementation
        config = GenerationConfig(
            do_sample=not self.options.greedy,
            temperature=self.options.temperature or None,
            top_k=self.options.top_k,
            top_p=self.options.top_p,
            max_new_tokens=self.options.max_new_tokens,
            eos_token_id=sorted(self.policy.ends),
            pad_token_id=self.policy.pad,
        )
        batching = ContinuousBatchingConfig(return_logprobs=True, seed=seed, **self._least_memory(requests))
        try:
            model.set_attn_implementation("sdpa")  # not our own over packed rows, which has no pages
            with torch.no_grad():
                outputs = model.generate_batch(
                    requests, generation_config=config, continuous_batching_config=batching, progress_bar=False
                )
        finally:
            model.set_attn_implementation(before)  # the engine leaves paged attention behind
        found = [outputs.get(f"req_{index}") for index in range(len(requests))]
        lost = [one for one in found if one is None or one.error]
        if lost:
            reason = next((one.error for one in lost if one is not None), "it says nothing of why")
            raise ValueError(f"engine continuous: {len(lost)} of {len(requests)} answers were lost: {reason}")
        return [(list(one.generated_tokens), list(one.logprobs)) for one in found if one is not None]

    def _least_memory(self, requests: list[list[int]]) -> dict[str, Any]:
        """Returns the blocks that are needed: on a CPU the engine would take what it finds of memory."""
        if torch.accelerator.is_available():
            return {}
        longest = max(map(len, requests)) + self.options.max_new_tokens
        return {"page_size": 32, "num_blocks": len(requests) * (longest // 32 + 2), "max_batch_tokens": 2048}

    def _seed(self, prompts: Sequence[AskedPrompt]) -> int:
        text = f"{self.options.seed} {self.options.round} {[prompt.id for prompt in prompts]}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
