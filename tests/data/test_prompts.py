"""Prompts to be answered, and prompts whose last turn the answer goes on with."""

from __future__ import annotations

from typing import Any

import pytest
from making import make_tokenizer

from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.data import DataOptions, prepare, prompt_id, read_prompts

TURNS = [{"role": "user", "content": "the cat"}]
BEGUN = [*TURNS, {"role": "assistant", "content": "a dog"}]


@pytest.fixture(scope="module")
def talking() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_any_row_is_a_prompt(talking: Any) -> None:
    rows = [
        {"prompt": "plain"},
        {"prompt": "plain", "completion": " again", "label": True},
        {"prompt": "asked", "completion": " badly", "label": False},
        {"prompt": "pair", "chosen": " good", "rejected": " bad", "group": "g"},
        {"prompt": TURNS, "completion": "a bird"},
        {"messages": [*TURNS, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"prompt": "ids", "prompt_ids": [4, 5]},
    ]
    found = read_prompts(rows, talking)
    assert (found.rows, found.repeated) == (7, 1)
    assert [one.human for one in found.prompts] == [None, None, " good", "a bird", "y", None]
    assert [one.group for one in found.prompts] == [None, None, "g", None, None, None]
    assert found.prompts[0].ids == talking("plain")["input_ids"]
    assert found.prompts[3].ids == talking("<|user|>the cat<|assistant|>")["input_ids"]
    assert found.prompts[5].ids == [4, 5]
    assert found.prompts[0].id == prompt_id("plain") != prompt_id("plain ")


def test_human_tokens_are_those_of_training(talking: Any) -> None:
    row = {"prompt": TURNS, "chosen": "a bird", "rejected": "a song"}
    [one] = read_prompts([row], talking).prompts
    [trained] = list(prepare([row], talking, progress=False).dataset)
    assert (one.ids, one.human_ids) == (trained["prompt_ids"], trained["chosen_ids"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "row 0: prompt is missing"),
        ({"prompt": " "}, "row 0: prompt is empty"),
        ({"prompt": 3}, "row 0: prompt is of type int; allowed are text and a list of messages"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, r"row 0: prompt\[0\] has the unknown role 'robot'"),
        ({"prompt": "x", "prompt_ids": []}, "row 0: prompt_ids must be a list of token ids, at least one"),
    ],
)
def test_what_cannot_be_answered_is_named(row: dict[str, Any], message: str, talking: Any) -> None:
    with pytest.raises(ValueError, match=f"1 of 1 rows have no prompt that can be answered:\n  {message}"):
        read_prompts([row], talking)


# ---- steps: the prompt opens the assistant's turn ----------------------------------------------------------------


def test_completions_go_on_with_an_opened_turn(talking: Any) -> None:
    """The same tokens as one turn of "a dog sees", but of them only " sees" and the end are completion."""
    row = {"prompt": BEGUN, "chosen": " sees", "rejected": " likes the cat"}
    [one] = list(prepare([row], talking, progress=False).dataset)
    assert one["prompt_ids"] == talking("<|user|>the cat<|assistant|>a dog")["input_ids"]
    assert one["chosen_ids"] == talking(" sees<|end|>")["input_ids"]
    assert one["rejected_ids"] == talking(" likes the cat<|end|>")["input_ids"]
    assert one["chosen_mask"] == [True] * len(one["chosen_ids"])
    assert one["prompt_ids"] == read_prompts([{"prompt": BEGUN}], talking).prompts[0].ids


def test_a_template_without_marks_opens_turns_too(talking: Any) -> None:
    plain = make_tokenizer()
    plain.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    plain.chat_template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    row = {"prompt": BEGUN, "chosen": " sees", "rejected": " likes"}
    [one] = list(prepare([row], plain, progress=False).dataset)
    assert plain.decode(one["prompt_ids"]) == "<user>the cat</user><assistant>a dog"
    assert plain.decode(one["chosen_ids"]) == " sees</assistant>"


def test_an_opened_turn_needs_a_question(talking: Any) -> None:
    row = {"prompt": BEGUN[1:], "chosen": " sees", "rejected": " likes"}
    with pytest.raises(ValueError, match="the prompt is nothing but the opening of an assistant's turn"):
        prepare([row], talking, DataOptions(), progress=False)
