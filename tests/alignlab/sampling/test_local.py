"""Answers of a model in this process: what each depends on, and where it ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from making import make_model, make_rows

from alignlab.data import prepare
from alignlab.sampling import sample_answers
from alignlab.sampling.local import SeededGumbel


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_model(0)


@pytest.fixture(scope="module")
def dataset(tokenizer: Any) -> Any:
    return prepare(make_rows(7, groups=("a", "b")), tokenizer, progress=False).dataset


def test_noise_makes_the_greedy_choice_a_sample() -> None:
    """4,000 seeds on three logits: frequencies within four standard errors of the softmax."""
    logits = torch.tensor([0.0, 1.0, -1.0])
    choices = SeededGumbel(range(4000))(torch.zeros(4000, 1), logits.expand(4000, 3)).argmax(-1)
    for token, share in enumerate(logits.softmax(-1).tolist()):
        assert abs(float((choices == token).float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_an_answer_depends_on_its_own_seed_alone(policy: Any, dataset: Any, tokenizer: Any) -> None:
    """Batches of one or of seven, or another order, draw the same answers; another seed does not."""
    prompts = list(dataset.with_format("numpy")["prompt_ids"])
    options: dict[str, Any] = {"max_new_tokens": 12}

    def drawn(seeds: list[int], order: list[int], **more: Any) -> dict[int, list[int]]:
        answers = sample_answers(policy, tokenizer, [prompts[i] for i in order], seeds, **options, **more)
        return dict(zip(order, [one.completion.tolist() for one in answers], strict=True))

    forward, backward = list(range(7)), list(range(6, -1, -1))
    whole = drawn(forward, forward, batch_size=7)
    assert drawn(forward, forward, batch_size=1) == whole
    assert drawn(backward, backward, batch_size=3) == whole
    assert drawn([one + 100 for one in forward], forward) != whole
    greedy = sample_answers(policy, tokenizer, prompts, None, **options)
    assert [one.completion.tolist() for one in greedy] != [whole[i] for i in forward]


@pytest.mark.parametrize(
    "own",
    [
        {"suppress_tokens": list(range(100, 300))},
        {"sequence_bias": [[[50], 100.0]]},
        {"forced_eos_token_id": 1},
        {"exponential_decay_length_penalty": (1, 50.0)},
        {"max_time": 1e-9},
        {"num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"stop_strings": ["a"]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_nothing_of_a_models_generation_config_is_taken(own: dict[str, Any], policy: Any, tokenizer: Any) -> None:
    """What bent answers, cut them off or could not be drawn with; the config is what it was afterwards."""
    bent: Any = make_model(0)
    for name, value in own.items():
        setattr(bent.generation_config, name, value)
    plain, drawn = (
        [one.completion.tolist() for one in sample_answers(model, tokenizer, [[5, 6]] * 4, range(4), max_new_tokens=6)]
        for model in (policy, bent)
    )
    assert drawn == plain
    assert {name: getattr(bent.generation_config, name) for name in own} == own


def test_the_models_own_generation_config_does_not_bend_the_distribution(dataset: Any, tokenizer: Any) -> None:
    prompts, plain = [dataset[0]["prompt_ids"]] * 3, make_model(0)
    bent: Any = make_model(0)
    bent.generation_config.update(top_k=1, temperature=0.1, repetition_penalty=9.0, do_sample=True, min_new_tokens=9)
    drawn = [
        [one.completion.tolist() for one in sample_answers(model, tokenizer, prompts, [1, 2, 3], max_new_tokens=8)]
        for model in (plain, bent)
    ]
    assert drawn[0] == drawn[1]


def test_answers_end_with_any_end_token(policy: Any, dataset: Any, tokenizer: Any) -> None:
    """The sixth token of the greedy answer is made an end: the answer is cut behind it."""
    [answer] = sample_answers(policy, tokenizer, [dataset[0]["prompt_ids"]], None, max_new_tokens=12)
    end = int(answer.completion[5])
    ending: Any = make_model(0)
    ending.generation_config.eos_token_id = [1, end]
    [cut] = sample_answers(ending, tokenizer, [dataset[0]["prompt_ids"]], None, max_new_tokens=12)
    length = answer.completion.tolist().index(end) + 1
    assert cut.completion.tolist() == answer.completion.tolist()[:length]
