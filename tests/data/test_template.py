"""Where prompt ends and completion begins, and which of its tokens the assistant said."""

from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

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


def test_half_a_surrogate_pair_under_such_a_template_is_a_bad_row(thinking):
    with pytest.raises(ValueError, match="row 0: not UTF-8: the text has half of a surrogate pair"):
        first(thinking, {**CHAT, "chosen": [{"role": "assistant", "content": "\ud83d"}]})


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
    with pytest.raises(ValueError, match=r"row 0: chosen\[0\]: the chat template leaves content out"):
        first(tokenizer, CHAT)


def test_template_that_marks_nothing_is_a_bad_row(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}")
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


# ---- what a stock template cannot do ---------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"in": "Rome"}}}
ASKS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SUNNY = {"role": "tool", "content": "sunny"}
AGENT = {"prompt": [USER], "chosen": [ASKS, SUNNY, GOOD], "rejected": [BAD]}
EMPTY = "<think>\n\n</think>\n\n"
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"in": "Rome"}}\n</tool_call><|im_end|>\n'
ANSWERED = "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
THOUGHT = {**GOOD, "reasoning_content": "Hm."}


@pytest.fixture(scope="module")
def qwen3(make_tokenizer):
    """Qwen3's stock template: it leaves out the thoughts of all but the last reply, and marks nothing."""
    return make_tokenizer(get_chat_template("qwen3"))


def get_chat_template(name):
    return (Path(find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def test_agents_train_under_a_stock_template_with_the_training_template_of_trl(qwen3):
    prepared = prepare([AGENT, AGENT], qwen3, progress=False)
    row = prepared.dataset[0]
    assert qwen3.decode(row["prompt_ids"]) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert stretches(qwen3, row, "chosen") == [
        (EMPTY + CALLED, True),
        (ANSWERED, False),
        (f"{EMPTY}Yes.<|im_end|>\n", True),
    ]
    assert prepared.report.notes == [
        "replies open with an empty thought (<think></think>), whose tokens count; "
        "score_empty_thoughts: false leaves them out",
        "TRL's training template renders the rows that the chat template cannot serve: "
        "it refuses them, does not render their turns one after the other, or leaves thoughts or tool calls out",
    ]


def test_empty_thoughts_count_only_where_they_are_told_to(qwen3):
    row = first(qwen3, AGENT, score_empty_thoughts=False)
    assert stretches(qwen3, row, "chosen") == [
        (EMPTY, False),
        (CALLED, True),
        (ANSWERED + EMPTY, False),
        ("Yes.<|im_end|>\n", True),
    ]
    assert stretches(qwen3, row, "rejected") == [(EMPTY, False), ("No.<|im_end|>\n", True)]
    whole = first(qwen3, AGENT)
    assert row["chosen_ids"] == whole["chosen_ids"]


def test_thoughts_that_are_there_count_whatever_the_key_says(qwen3):
    prepared = prepare(
        [{**CHAT, "chosen": [THOUGHT], "rejected": [{**BAD, "reasoning_content": "Oh."}]}],
        qwen3,
        DataOptions(score_empty_thoughts=False),
        progress=False,
    )
    chosen = stretches(qwen3, prepared.dataset[0], "chosen")
    assert chosen == [("<think>\nHm.\n</think>\n\nYes.<|im_end|>\n", True)]
    assert prepared.report.notes == []


def test_single_replies_keep_the_stock_template_which_leaves_out_earlier_thoughts(qwen3):
    prepared = prepare([{**CHAT, "prompt": [USER, THOUGHT, MORE]}], qwen3, progress=False)
    prompt = qwen3.decode(prepared.dataset[0]["prompt_ids"])
    assert prompt.startswith("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n")
    assert "the chat template leaves reasoning_content out of turns of the prompt" in prepared.report.notes
    assert not any("training template" in note for note in prepared.report.notes)


def test_thoughts_of_several_turns_are_kept(qwen3):
    """The stock template drops the first one: a user's question follows it."""
    row = first(qwen3, {"prompt": [USER], "chosen": [THOUGHT, MORE, GOOD], "rejected": [BAD]})
    assert stretches(qwen3, row, "chosen")[0] == ("<think>\nHm.\n</think>\n\nYes.<|im_end|>\n", True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**CHAT, "chosen": [THOUGHT]}, r"row 0: chosen\[0\]: the chat template leaves reasoning_content out"),
        ({**CHAT, "chosen": [{**GOOD, "tool_calls": [CALL]}]}, r"row 0: chosen\[0\]: .* leaves tool_calls out"),
        ({**CHAT, "prompt": [USER, ASKS, SUNNY]}, r"row 0: prompt\[1\]: the chat template leaves tool_calls out"),
    ],
)
def test_what_a_template_leaves_out_makes_a_bad_row(make_tokenizer, chatml, row, reason):
    deaf = chatml.replace("{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}", "")
    with pytest.raises(ValueError, match=reason):
        first(make_tokenizer(deaf), row)


def test_a_template_that_refuses_a_turn_without_its_calls_has_them(make_tokenizer, chatml):
    strict = chatml.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if not message.content and not message.tool_calls %}"
        "{{ raise_exception('nothing said') }}{% endif %}",
    )
    tokenizer = make_tokenizer(strict)
    row = first(tokenizer, {"prompt": [USER], "chosen": [ASKS], "rejected": [BAD]})
    assert '"weather"' in tokenizer.decode(row["chosen_ids"])


def test_a_thought_of_which_only_a_trace_is_written_is_left_out(make_tokenizer, chatml):
    """The rendering differs with and without it, by a mark that is not the thought."""
    words = "{{ message.content }}"
    traced = chatml.replace(words, "{% if message.reasoning_content %}*{% endif %}" + words)
    with pytest.raises(ValueError, match=r"chosen\[0\]: the chat template leaves reasoning_content out"):
        first(make_tokenizer(traced), {**CHAT, "chosen": [THOUGHT]})


def test_calls_that_a_stock_template_refuses(make_tokenizer):
    """DeepSeek-V3's takes the arguments of a call as text only; TRL's variant of it takes both."""
    tokenizer = make_tokenizer(get_chat_template("deepseekv3"))
    row = first(tokenizer, AGENT, max_length=None)
    counted = [text for text, counts in stretches(tokenizer, row, "chosen") if counts]
    assert "weather" in counted[0]
    assert '{"in": "Rome"}' in counted[0]
    assert "Yes." in counted[1]


def test_words_that_a_template_leaves_out_make_a_bad_row_or_a_note(make_tokenizer, chatml):
    """As templates do that read content as a list of parts, and write nothing for a text."""
    deaf = chatml.replace("{{ message.content }}", "{% if message.role == 'user' %}{{ message.content }}{% endif %}")
    with pytest.raises(ValueError, match=r"row 0: chosen\[0\]: the chat template leaves content out"):
        first(make_tokenizer(deaf), {**CHAT, "chosen": [GOOD, MORE]})
    deaf = chatml.replace("{{ message.content }}", "{% if message.role != 'system' %}{{ message.content }}{% endif %}")
    prepared = prepare([{**CHAT, "system": "Be kind."}], make_tokenizer(deaf), progress=False)
    assert prepared.report.notes == ["the chat template leaves content out of turns of the prompt"]


def test_words_that_a_template_trims_or_splits_are_there(make_tokenizer, chatml):
    shouting = chatml.replace("{{ message.content }}", "{{ message.content | upper }}")
    row = first(make_tokenizer(shouting), {**CHAT, "chosen": [{**GOOD, "content": " Yes. "}]})
    assert stretches(make_tokenizer(shouting), row, "chosen") == [(" YES. <|im_end|>\n", True)]
