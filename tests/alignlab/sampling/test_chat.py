"""Answers to conversations: the template before the sampler, and one seed for a whole call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from making import make_model, make_tokenizer
from transformers import GenerationConfig

from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.sampling import chat, generate, sample_answers, texts

QUESTIONS = ["the cat", "a big red stone sees the old house", "song", "a bird likes the river", "the tree", "dog", "a"]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(0)


@pytest.fixture(scope="module")
def talking() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def drawn_by_transformers(model: Any, tokenizer: Any, size: int) -> list[list[int]]:
    """Returns answers by ``torch.multinomial``, in batches, from torch's own generator with seed 5."""
    config = GenerationConfig(
        max_new_tokens=12, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=1
    )
    found: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for start in range(0, len(CONVERSATIONS), size):
            batch = CONVERSATIONS[start : start + size]
            ids = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in batch]
            inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
            output = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            found += [row[: row.index(1) + 1] if 1 in row else row for row in output]
    return found


@pytest.mark.parametrize("size", [3, 64])
def test_one_seed_draws_what_multinomial_does(
    size: int, model: Any, talking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token for token, over several batches, and torch's own generator stays where it is."""
    monkeypatch.setattr(chat, "BATCH", size)
    before = torch.random.get_rng_state()
    answers = generate(model, talking, CONVERSATIONS, sample=True, max_new_tokens=12, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [one.completion.tolist() for one in answers] == drawn_by_transformers(model, talking, size)


def test_greedy_answers_follow_the_template(model: Any, talking: Any) -> None:
    answers = generate(model, talking, CONVERSATIONS, max_new_tokens=6)
    prompts = [talking(f"<|user|>{question}<|assistant|>")["input_ids"] for question in QUESTIONS]
    assert [one.prompt.tolist() for one in answers] == prompts
    expected = sample_answers(model, talking, prompts, None, max_new_tokens=6)
    assert [one.completion.tolist() for one in answers] == [one.completion.tolist() for one in expected]
    assert all(one.mask.all() for one in answers)


def test_texts_have_no_special_tokens(model: Any, talking: Any) -> None:
    [answer] = generate(model, talking, CONVERSATIONS[:1], max_new_tokens=6)
    ended = replace(answer, completion=np.append(answer.completion, 1))
    assert texts(talking, [answer, ended]) == [talking.decode(answer.completion)] * 2
