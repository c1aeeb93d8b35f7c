"""Answers drawn from a model in this process: greedy, each by a seed of its own, or all by one seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from alignlab import models
from alignlab.data import ScoredSequence
from alignlab.runtime import evaluating, unwrap

Seeds = Sequence[int] | int | None  # of each answer; of all answers of a call together; or greedy


class SeededGumbel(LogitsProcessor):  # type: ignore[misc]
    """Makes the greedy choice a sample of softmax(logits): adds -log E, E ~ Exp(1).

    Source: the Gumbel-max trick, Maddison et al. 2014, "A* Sampling", section 2.

    Args:
        seeds: one a row, so that its noise is the same in any batch; or a single one, whose generator serves all rows
            of all calls. On a CPU it then chooses what ``torch.multinomial`` would, which divides by the same E.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores ``[N, V]`` in float32 with noise."""
        shape = len(scores) // len(self.generators), scores.shape[-1]
        noise = torch.cat([torch.empty(shape).exponential_(generator=one) for one in self.generators])
        return scores.float() - noise.clamp_(min=torch.finfo(torch.float32).tiny).log().to(scores.device)


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[ArrayLike],
    seeds: Seeds,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    bent: Sequence[LogitsProcessor] = (),
) -> list[ScoredSequence]:
    """Returns one answer to each prompt (token ids), sampled from the model's own distribution, or greedy.

    Prompts are padded on the left. Every token of an answer counts, its EOS included; what follows EOS is cut. Torch's
    own generators are neither read nor moved.

    Args:
        seeds: of each answer, which then depends on its own seed alone, whatever batch or rank it is drawn in; or one
            seed for the whole call, where the batch matters; None decodes greedily.
        bent: what the logits go through before the noise: a temperature, a nucleus; by default nothing.

    Raises:
        ValueError: the tokenizer and the model name no EOS token, so that no answer would ever end.
    """
    assert seeds is None or isinstance(seeds, int) or len(seeds) == len(prompts)
    inner = unwrap(model)
    ends, pad = end_tokens(inner, tokenizer), models.pad_token_id(tokenizer)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad
    )
    device, answers = next(inner.parameters()).device, list[ScoredSequence]()
    with evaluating(model), _no_config_of_its_own(inner):
        for start, noise in zip(range(0, len(prompts), batch_size), _noise(seeds, batch_size), strict=False):
            batch = [np.asarray(prompt).tolist() for prompt in prompts[start : start + batch_size]]
            inputs = _left_padded(batch, pad)
            output = inner.generate(
                input_ids=inputs.to(device),
                attention_mask=_left_padded([[1] * len(prompt) for prompt in batch], 0).to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList([*bent, *noise]),
            )
            rows = output[:, inputs.shape[1] :].tolist()
            answers += [_answer(prompt, row, ends) for prompt, row in zip(batch, rows, strict=True)]
    return answers


@contextmanager
def _no_config_of_its_own(model: nn.Module) -> Iterator[None]:
    """Draws from the distribution as it is.

    ``generate`` takes what it is not told from the model's own generation config: penalties, suppressed tokens, biases,
    time limits. With any of them answers are not the model's, and no estimate of a KL holds.
    """
    own = [(one, one.generation_config) for one in model.modules() if hasattr(one, "generation_config")]
    try:
        for one, _ in own:
            one.generation_config = GenerationConfig()
        yield
    finally:
        for one, config in own:
            one.generation_config = config


def _noise(seeds: Seeds, batch_size: int) -> Iterator[list[SeededGumbel]]:
    """Yields what each batch's logits go through."""
    if seeds is None:
        yield from repeat([])
    elif isinstance(seeds, int):
        yield from repeat([SeededGumbel([seeds])])
    else:
        yield from ([SeededGumbel(seeds[at : at + batch_size])] for at in range(0, len(seeds), batch_size))


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the tokens that end an answer: the tokenizer's EOS and those of the model's generation config.

    Raises:
        ValueError: there is none.
    """
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {int(one) for one in (found if isinstance(found, list) else [found]) if one is not None}
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    if not ends:
        raise ValueError("neither the tokenizer nor the model names an EOS token: no answer would ever end")
    return ends


def _left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def _answer(prompt: list[int], tokens: list[int], ends: set[int]) -> ScoredSequence:
    """Cuts what follows the first end."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
    return ScoredSequence(np.array(prompt), np.array(tokens[:end], dtype=np.int64), np.ones(end, dtype=bool))
