"""Answers of a causal language model, how likely given answers are, and how far two models are apart on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignlab import models, scoring
from alignlab.data import ScoredSequence, layout_sequences
from alignlab.runtime import evaluating

Messages = list[dict[str, str]]
BATCH = 64


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    *,
    sample: bool = False,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[ScoredSequence]:
    """Returns one answer to each conversation, greedy or sampled from the model's own distribution.

    Prompts are padded on the left. Every token of an answer counts, its EOS included.
    """
    pad, eos = models.pad_token_id(tokenizer), tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=eos, do_sample=sample, **_UNTOUCHED[sample]
    )
    answers: list[ScoredSequence] = []
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(conversations), BATCH):
            prompts = [_prompt_ids(tokenizer, turns) for turns in conversations[start : start + BATCH]]
            inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
            output = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
            answers += [_answer(prompt, row.tolist(), eos) for prompt, row in zip(prompts, output, strict=True)]
    return answers


# Sampling is from the whole distribution as it is; greedy decoding refuses such options.
_UNTOUCHED: dict[bool, dict[str, Any]] = {True: {"temperature": 1.0, "top_k": 0, "top_p": 1.0}, False: {}}


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: Messages) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return ids


def _answer(prompt: list[int], tokens: list[int], eos: int) -> ScoredSequence:
    """Cuts what follows the first EOS."""
    tokens = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
    return ScoredSequence(np.array(prompt), np.array(tokens), np.ones(len(tokens), dtype=bool))


def texts(tokenizer: PreTrainedTokenizerBase, answers: Sequence[ScoredSequence]) -> list[str]:
    """Returns the answers as text, without special tokens."""
    return [tokenizer.decode(answer.completion, skip_special_tokens=True) for answer in answers]


def log_likelihoods(model: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Tensor:
    """Returns log p(completion | prompt) of each sequence, summed over the tokens that count, ``[N]``."""
    with evaluating(model):
        parts = [scoring.score(model, layout)["logps"][0].sum(-1) for layout in _layouts(model, sequences, pad_id)]
    return torch.cat(parts)


def sequence_kl(model: nn.Module, reference: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Tensor:
    """Returns sum_t KL(model || reference) over the whole vocabulary at each token of each completion, ``[N]``.

    Its mean over answers sampled from ``model`` estimates the KL divergence between both distributions of answers.
    """
    parts = []
    with evaluating(model), evaluating(reference):
        for layout in _layouts(model, sequences, pad_id):
            logits, ref_logits = (scoring.needed_logits(one, layout) for one in (model, reference))
            kl = scoring.token_kl(logits, ref_logits)  # KL(first || second)
            parts.append(scoring.place(kl, layout)[0].sum(-1))
    return torch.cat(parts)


def _layouts(model: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    for start in range(0, len(sequences), BATCH):
        layout = layout_sequences(sequences[start : start + BATCH], pad_id)
        yield {name: value.to(device) if isinstance(value, Tensor) else value for name, value in layout.items()}
