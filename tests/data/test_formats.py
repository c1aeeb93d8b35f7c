"""Every form of row becomes the same canonical row, or one sentence that says why not."""

import json

import numpy as np
import pytest

from alignlab.data.formats import parse_row
from alignlab.data.options import DataOptions
from alignlab.data.schema import RowError

PAIRS = DataOptions()
LABELLED = DataOptions(kind="labelled")
USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be kind."}


def texts(row):
    return row.prompt, {name: "".join(text for text, _ in value) for name, value in row.completions.items()}


@pytest.mark.parametrize(
    ("raw", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "Sky? ", "chosen": "blue", "rejected": "green"}, "Sky? ", "blue", "green"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", " blue.", " green."),
        ({"chosen": "It is black", "rejected": "It is blue"}, "It is", " black", " blue"),  # no word is cut in two
        ({"chosen": "Q: x\nyes", "rejected": "Q: x\nno"}, "Q: x\n", "yes", "no"),
    ],
)
def test_standard_pairs(raw, prompt, chosen, rejected):
    row = parse_row(raw, PAIRS)
    assert texts(row) == (prompt, {"chosen": chosen, "rejected": rejected})
    assert row.is_pair
    assert not row.is_conversational


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # the prompt repeated
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # as UltraFeedback has it
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
        {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Hello.", "rejected": "No."},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "Hi?"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {"instruction": "Hi?", "input": "", "chosen": "Hello.", "rejected": "No."},
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        {"prompt": [{**USER, "name": None}], "chosen": [GOOD], "rejected": [BAD], "system": None, "tools": None},
    ],
)
def test_conversational_pairs(raw):
    row = parse_row(raw, PAIRS)
    assert row.prompt == [USER]
    assert row.completions == {"chosen": [GOOD], "rejected": [BAD]}


def test_system_field_and_alpaca_history():
    raw = {"instruction": "Hi?", "input": "Now.", "history": [["a", "b"]], "system": "Be kind."}
    row = parse_row({**raw, "chosen": "x", "rejected": "y"}, PAIRS)
    assert [(turn["role"], turn["content"]) for turn in row.prompt] == [
        ("system", "Be kind."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Hi?\nNow."),
    ]


def test_conversations_that_part_early_keep_all_later_turns():
    more = {"role": "user", "content": "More?"}
    row = parse_row({"chosen": [USER, GOOD, more, GOOD], "rejected": [USER, BAD]}, PAIRS)
    assert row.prompt == [USER]
    assert row.completions == {"chosen": [GOOD, more, GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ({"prompt": "Hi?", "completion": "Hello.", "label": True}, True),
        ({"prompt": "Hi?", "completion": "Hello.", "label": 0}, False),
        ({"prompt": "Hi?", "completion": "Hello.", "label": np.bool_(True)}, True),
    ],
)
def test_standard_labelled(raw, label):
    row = parse_row(raw, LABELLED)
    assert texts(row) == ("Hi?", {"completion": "Hello."})
    assert row.label is label


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [USER], "completion": [GOOD], "label": False},
        {"messages": [USER, GOOD], "label": False},
        {"messages": [USER, GOOD], "kto_tag": False},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}], "kto_tag": False},
        {"instruction": "Hi?", "output": "Hello.", "kto_tag": False},
    ],
)
def test_conversational_labelled(raw):
    row = parse_row(raw, LABELLED)
    assert (row.prompt, row.completions, row.label) == ([USER], {"completion": [GOOD]}, False)


def test_default_label_serves_supervised_rows():
    assert parse_row({"messages": [USER, GOOD]}, DataOptions(kind="labelled", default_label=True)).label is True
    with pytest.raises(RowError, match="label is missing"):
        parse_row({"messages": [USER, GOOD]}, LABELLED)


def test_sharegpt_tools_and_function_calls():
    raw = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"in": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
        ],
        "tools": json.dumps([{"name": "weather"}]),
        "chosen": {"from": "gpt", "value": "Sunny."},
        "rejected": {"from": "gpt", "value": "Rain."},
    }
    row = parse_row(raw, PAIRS)
    assert [turn["role"] for turn in row.prompt] == ["user", "assistant", "tool"]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"in": "Rome"}}}
    assert row.prompt[1]["tool_calls"] == [call]
    assert row.tools == [{"name": "weather"}]


def test_gold_is_read_only_where_the_loss_needs_it():
    raw = {"prompt": "Hi?", "chosen": "a", "rejected": "b"}
    assert "gold" not in parse_row({**raw, "gold": "c"}, PAIRS).completions
    assert texts(parse_row({**raw, "gold": "c"}, DataOptions(gold=True)))[1]["gold"] == "c"
    with pytest.raises(RowError, match="gold is missing, and the loss needs it"):
        parse_row(raw, DataOptions(gold=True))
    turns = {"chosen": [USER, GOOD], "rejected": [USER, BAD], "gold": [USER, {**GOOD, "content": "Hey."}]}
    assert parse_row(turns, DataOptions(gold=True)).completions["gold"] == [{**GOOD, "content": "Hey."}]


def test_columns():
    raw = {"prompt": "p", "chosen": "a", "rejected": "b", "group": 3, "weight": 2, "margin": -0.5, "score_chosen": 9}
    raw |= {"rewards_chosen": [1, 2.5], "rewards_rejected": {"helpful": 1, "harmless": 2}}
    assert parse_row(raw, PAIRS).columns == {
        "group": "3",
        "weight": 2.0,
        "margin": -0.5,
        "score_chosen": 9.0,
        "rewards_chosen": [1.0, 2.5],
        "rewards_rejected": {"helpful": 1.0, "harmless": 2.0},
    }


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
        ({"prompt": "p", "rejected": "a"}, "chosen is missing"),
        ({"prompt": "p"}, "chosen and rejected are missing"),
        ({**PAIR, "chosen": " \n"}, "chosen is empty"),
        ({**PAIR, "prompt": ""}, "prompt is empty"),
        ({**PAIR, "chosen": 3}, "chosen is of type int; allowed are text and a list of messages"),
        ({**PAIR, "prompt": 3}, "prompt is of type int; allowed are text and a list of messages"),
        ({**PAIR, "rejected": "a"}, "chosen and rejected are equal"),
        (
            {"chosen": "a b", "rejected": "c d"},
            "prompt is missing, and chosen and rejected do not open with a shared one",
        ),
        ({"chosen": "a\n", "rejected": "a\nb"}, "chosen is empty after the prompt that both share"),
        (
            {"prompt": "p", "completion": "a", "label": True},
            "a labelled row .* use a loss for labelled rows, such as kto",
        ),
        ({**PAIR, "system": ["s"]}, "system is given with a plain-text prompt"),
        ({**CHAT, "prompt": []}, "prompt is empty"),
        (
            {**CHAT, "chosen": [{"role": "robot", "content": "x"}]},
            r"chosen\[0\] has the unknown role 'robot'; allowed are",
        ),
        ({**CHAT, "chosen": [{"from": "robot", "value": "x"}]}, r"chosen\[0\] is from 'robot'; allowed are"),
        ({**CHAT, "chosen": [{"role": "assistant", "content": " "}]}, r"chosen\[0\] has no content"),
        ({**CHAT, "chosen": [{"role": "assistant"}]}, r"chosen\[0\] has no content"),
        ({**CHAT, "chosen": ["x"]}, r"chosen\[0\] is of type str, a message must have role and content"),
        ({**CHAT, "chosen": [USER]}, "chosen has no assistant's turn after the prompt"),
        ({**CHAT, "chosen": [{**GOOD, "content": 3}]}, r"chosen\[0\] has content of type int"),
        (
            {**CHAT, "chosen": [{**GOOD, "content": [{"type": "image"}]}]},
            "content of kind image; only text is supported",
        ),
        ({**CHAT, "chosen": [USER, BAD]}, "chosen and rejected are equal"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "prompt is missing, and the conversation does not open with one"),
        ({**CHAT, "tools": "{"}, "tools is not JSON"),
        ({**CHAT, "tools": 3}, "tools must be a list of JSON schemas"),
        ({**PAIR, "weight": float("nan")}, "weight is nan; it must be a finite number"),
        ({**PAIR, "weight": -1}, "weight is -1.0; it must be 0 or more"),
        ({**PAIR, "margin": "3"}, "margin is '3' of type str; it must be a number"),
        ({**PAIR, "margin": True}, "margin is True of type bool; it must be a number"),
        ({**PAIR, "margin": 10**400}, "it must be a finite number"),
        ({**PAIR, "group": 1.5}, "group is of type float"),
        ({**PAIR, "group": " "}, "group is empty"),
        ({**PAIR, "rewards_chosen": 3}, "rewards_chosen must be a list of numbers or a mapping"),
        ({**PAIR, "rewards_chosen": [1, float("inf")]}, r"rewards_chosen\[1\] is inf; it must be a finite number"),
        ({**PAIR, "chat_template_kwargs": 3}, "chat_template_kwargs must be a mapping"),
        ({**PAIR, "prompt": None, "conversations": "x"}, "conversations must be a list of turns, found str"),
    ],
)
def test_bad_pairs_say_why(raw, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(raw, PAIRS)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": "p", "label": True}, "completion is missing"),
        ({"completion": "a", "label": True}, "prompt is missing"),
        ({"prompt": "p", "completion": "a"}, "label is missing"),
        ({"prompt": "p", "completion": "a", "label": "yes"}, "label is 'yes'; allowed are true and false"),
        ({"prompt": "p", "completion": "a", "label": 2}, "label is 2; allowed are true and false"),
        ({"messages": [GOOD], "label": True}, "prompt is missing, and the conversation does not open with one"),
    ],
)
def test_bad_labelled_rows_say_why(raw, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(raw, LABELLED)


@pytest.mark.parametrize(
    ("options", "raw", "reason"),
    [
        (DataOptions(columns=("group",)), PAIR, "group is missing, and the loss needs it"),
        (DataOptions(columns=("rewards",)), PAIR, "rewards_chosen is missing, and the loss needs it"),
        (DataOptions(rewards=2), {**PAIR, "rewards_chosen": [1, 2]}, "rewards_rejected is missing"),
        (
            DataOptions(rewards=2),
            {**PAIR, "rewards_chosen": [1, 2], "rewards_rejected": [1]},
            "rewards_rejected has 1 rewards, the loss needs 2",
        ),
        (
            DataOptions(reward_names=("a",)),
            {**PAIR, "rewards_chosen": {"b": 1}},
            "rewards_chosen names b; the run names a",
        ),
    ],
)
def test_required_columns(options, raw, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(raw, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pair"}, "kind must be one of pairs, labelled, lists; found 'pair'"),
        ({"columns": ("groups",)}, "columns must be one of group, weight"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"mismatched": True}, "mismatched completions exist for kind='labelled' only"),
        ({"gold": True, "kind": "labelled"}, "a gold completion exists for kind='pairs' only"),
        ({"rewards": -1}, "rewards must be 0 or more"),
        ({"rewards": 2, "reward_names": ("a",)}, "reward_names names 1 objectives, but rewards=2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**options)
