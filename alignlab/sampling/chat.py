"""Conversations on either side of the sampler: the chat template before it, texts behind it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignlab.data import ScoredSequence

from .local import sample_answers

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

    ``seed`` is that of the whole call: what is sampled depends on the other conversations too.
    """
    template = {"add_generation_prompt": True, "return_dict": False}
    prompts = [tokenizer.apply_chat_template(turns, **template) for turns in conversations]
    seeds = seed if sample else None
    return sample_answers(model, tokenizer, prompts, seeds, max_new_tokens=max_new_tokens, batch_size=BATCH)


def texts(tokenizer: PreTrainedTokenizerBase, answers: Sequence[ScoredSequence]) -> list[str]:
    """Returns the answers as text, without special tokens."""
    return [tokenizer.decode(answer.completion, skip_special_tokens=True) for answer in answers]
