"""Where prompt ends and completion begins, and which of its tokens the assistant said."""

from itertools import groupby

import pytest

from alignlab.data import DataOptions, prepare

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Yes."}
BAD = {"role": "assistant", "content": "No."}
MORE = {"role": "user", "content": "More?"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def stretches(tokenizer, row, name):
    """The completion as text, cut where the mask changes."""
    tokens = zip(row[f"{name}_ids"], row[f"{name}_mask"], strict=True)
    return [
        (tokenizer.decode([token for token, _ in part]), counts) for counts, part in groupby(tokens, lambda t: t[1])
    ]


def first(tokenizer, *rows, **options):
    return prepare(list(rows), tokenizer, DataOptions(**options), progress=False).dataset[0]


def test_chatml_row(tokenizer):
    row = first(tokenizer, CHAT)
    assert tokenizer.decode(row["prompt_ids"]) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert stretches(tokenizer, row, "chosen") == [("Yes.<|im_end|>\n", True)]
    assert stretches(tokenizer, row, "rejected") == [("No.<|im_end|>\n", True)]


def test_tokens_are_those_of_the_whole_rendering(tokenizer):
    """Byte-level: cutting at the boundary loses and adds nothing."""
    row = first(tokenizer, CHAT)
    whole = tokenizer.apply_chat_template([USER, GOOD], tokenize=True, return_dict=True)["input_ids"]
    assert row["prompt_ids"] + row["chosen_ids"] == whole


def test_only_the_assistants_turns_count(tokenizer):
    row = first(tokenizer, {"prompt": [USER], "chosen": [GOOD, MORE, GOOD], "rejected": [BAD]})
    assert stretches(tokenizer, row, "chosen") == [
        ("Yes.<|im_end|>\n", True),
        ("<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>\n", True),
    ]


def test_conversations_that_part_at_a_users_turn(tokenizer):
    other = {"role": "user", "content": "Less?"}
    row = first(tokenizer, {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, GOOD, other, BAD]})
    assert tokenizer.decode(row["prompt_ids"]) == tokenizer.apply_chat_template([USER, GOOD], tokenize=False)
    assert stretches(tokenizer, row, "rejected") == [
        ("<|im_start|>user\nLess?<|im_end|>\n<|im_start|>assistant\n", False),
        ("No.<|im_end|>\n", True),
    ]


GENERATION = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_generation_marks_decide_what_counts(make_tokenizer):
    tokenizer = make_tokenizer(GENERATION)
    row = first(tokenizer, {"prompt": [USER], "chosen": [GOOD, MORE, GOOD], "rejected": [BAD]})
    assert stretches(tokenizer, row, "rejected") == [("No.<|im_end|>", True), ("\n", False)]
    assert stretches(tokenizer, row, "chosen") == [
        ("Yes.<|im_end|>", True),
        ("\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
        ("\n", False),
    ]


def test_marks_that_open_before_the_completion_are_cut_at_the_prompts_end(make_tokenizer):
    """The template marks the assistant's header too, in the prompt's turn and in the completion's."""
    header = "<|im_start|>{{ message.role }}\n"
    template = GENERATION.replace(header, "", 1).replace("{% generation %}", "{% generation %}" + header)
    tokenizer = make_tokenizer(template.replace("{% else %}", "{% else %}" + header))
    row = first(tokenizer, {"prompt": [USER, GOOD, MORE], "chosen": [GOOD], "rejected": [BAD]})
    assert tokenizer.decode(row["prompt_ids"]).endswith("More?<|im_end|>\n<|im_start|>assistant\n")
    assert stretches(tokenizer, row, "chosen") == [("Yes.<|im_end|>", True), ("\n", False)]


@pytest.fixture
def thinking(make_tokenizer, chatml):
    """The generation prompt ends with an empty thought that the whole conversation leaves out."""
    return make_tokenizer(chatml.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}"))


def test_template_that_is_no_prefix_of_itself_is_cut_where_the_tokens_part(thinking):
    prepared = prepare([CHAT, CHAT], thinking, DataOptions(), progress=False)
    row = prepared.dataset[0]
    assert thinking.decode(row["prompt_ids"]) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert stretches(thinking, row, "chosen") == [("Yes.<|im_end|>\n", True)]
    assert [note for note in prepared.report.notes if "differently alone" in note] == [
        "the chat template renders a prompt differently alone than followed by a reply; "
        "the prompt is cut where their tokens part"
    ]


def test_several_turns_under_such_a_template_are_a_bad_row(thinking):
    with pytest.raises(ValueError, match=r"row 0: chosen has several turns, .*mark the assistant's words"):
        first(thinking, {"prompt": [USER], "chosen": [GOOD, MORE, GOOD], "rejected": [BAD]})


def test_one_reply_and_the_users_answer_can_be_told_apart_under_such_a_template(thinking):
    row = first(thinking, {"prompt": [USER], "chosen": [GOOD, MORE], "rejected": [BAD]})
    assert stretches(thinking, row, "chosen") == [
        ("Yes.<|im_end|>\n", True),
        ("<|im_start|>user\nMore?<|im_end|>\n", False),
    ]


def test_template_that_shares_no_opening_is_a_bad_row(make_tokenizer):
    tokenizer = make_tokenizer("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match=r"row 0: the chat template renders .* without a shared opening"):
        first(tokenizer, CHAT)


def test_template_that_refuses_is_a_bad_row(make_tokenizer, chatml):
    tokenizer = make_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + chatml
    )
    with pytest.raises(ValueError, match="row 0: the chat template refuses the row: no system"):
        first(tokenizer, {**CHAT, "system": "Be kind."})


def test_template_that_leaves_the_reply_out_is_a_bad_row(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="row 0: chosen: the chat template renders nothing for it"):
        first(tokenizer, CHAT)


def test_no_chat_template_is_said_once_not_for_each_row(make_tokenizer):
    with pytest.raises(ValueError, match="the tokenizer has no chat template") as error:
        first(make_tokenizer(None), CHAT, CHAT)
    assert "rows are bad" not in str(error.value)


def test_system_tools_and_template_arguments_reach_the_template(make_tokenizer, chatml):
    tokenizer = make_tokenizer("{{ mood }}|" + chatml)
    row = {**CHAT, "system": "Be kind.", "tools": [{"name": "clock"}]}
    options = {"chat_template_kwargs": {"mood": "calm"}}
    start = '<|im_start|>system\n[{"name": "clock"}]<|im_end|>\n<|im_start|>system\nBe kind.<|im_end|>\n'
    assert tokenizer.decode(first(tokenizer, row, **options)["prompt_ids"]).startswith("calm|" + start)
    row["chat_template_kwargs"] = {"mood": "wild"}  # the row's own go over the run's
    assert tokenizer.decode(first(tokenizer, row, **options)["prompt_ids"]).startswith("wild|" + start)


def test_bos_of_the_template_is_not_doubled(make_tokenizer, chatml):
    tokenizer = make_tokenizer("<bos>" + chatml, bos=True)
    row = first(tokenizer, CHAT)
    assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in row["chosen_ids"]  # the template ends turns in its own way


def test_date_in_the_template_is_warned_of(make_tokenizer, chatml):
    tokenizer = make_tokenizer("{{ strftime_now('%Y') }}" + chatml)
    prepared = prepare([CHAT], tokenizer, DataOptions(), progress=False)
    assert any("today's date" in note for note in prepared.report.notes)
