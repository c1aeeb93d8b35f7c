"""Conversations are rendered as transformers renders them, whatever is spared on the way."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from alignlab.data.renderer import Renderer, Unclear

USER, REPLY = {"role": "user", "content": " Hi? "}, {"role": "assistant", "content": "<b>Yes</b> & 'no'."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"in": "Rome"}}}
CONVERSATIONS = [
    [USER],
    [USER, REPLY],
    [SYSTEM, USER, REPLY],
    [USER, REPLY, USER],
    [USER, REPLY, USER, REPLY],
    [USER, {**REPLY, "reasoning_content": "Hm."}],
    [USER, {**REPLY, "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}],
]
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
TEMPLATES = [
    "cohere",
    "deepseekv3",
    "gemma",
    "gemma3",
    "llama3",
    "llama3_1",
    "phi3",
    "qwen2_5",
    "qwen3",
    "qwen3_training",
]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}me:{% endif %}"


def theirs(template, conversations, generation, **arguments):
    """What transformers makes of each conversation, or that it refuses."""
    try:
        return chat_template_utils.render_jinja_template(
            conversations=conversations, chat_template=template, add_generation_prompt=generation, **arguments
        )[0]
    except Exception as error:
        return str(error)


def ours(template, conversations, generation, **arguments):
    renderer = Renderer(template, arguments)
    try:
        return [text for text, _ in renderer(conversations, generation)]
    except Unclear as error:
        return str(error).removeprefix("the chat template refuses the row: ")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_text_or_the_same_refusal(name):
    folder = Path(find_spec("trl").origin).parent / "chat_templates"
    template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    for turns in CONVERSATIONS:
        for generation in (True, False):
            found = ours(template, [turns, turns], generation, **TOKENS)
            assert found == theirs(template, [turns, turns], generation, **TOKENS)
            assert len(found) == 2 or isinstance(found, str)


@pytest.mark.parametrize(
    "arguments", [{"documents": [{"title": "a"}]}, {"messages": []}, {"tools": [CALL]}, {"n": [1]}]
)
def test_arguments_of_any_name_and_kind(arguments):
    template = PLAIN + "{{ documents }}{{ tools }}{{ n }}"
    found = ours(template, [[USER]], True, **arguments)
    assert found == theirs(template, [[USER]], True, **arguments) or "multiple values" in found


def test_a_turn_that_stays_open():
    expected = theirs(PLAIN, [[USER, REPLY]], False, continue_final_message=True)
    [(text, _)] = Renderer(PLAIN, {})([[USER, REPLY]], False, begun=True)
    assert [text] == expected
    assert text.endswith("assistant: <b>Yes</b> & 'no'.")


def test_a_private_function_of_transformers_may_go(monkeypatch):
    expected = ours(PLAIN, [[USER, REPLY]], False)
    compiler = chat_template_utils._compile_jinja_template
    renderer = Renderer(PLAIN, {})
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", None)
    assert renderer._shared is None
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", compiler)
    assert [text for text, _ in renderer([[USER, REPLY]], False)] == expected


def test_a_prompt_that_comes_again_is_rendered_once_and_another_anew(monkeypatch):
    """Of the template's renderings: USER, then SYSTEM and USER, then USER again."""
    asked = [[USER], [dict(USER)], [SYSTEM, USER], [USER]]
    expected = theirs(PLAIN, asked, True)
    renderer, rendered = Renderer(PLAIN, {}), []
    root = renderer._compiled.root_render_func
    monkeypatch.setattr(renderer._compiled, "root_render_func", lambda context: rendered.append(1) or root(context))
    assert [renderer([turns], True)[0][0] for turns in asked] == expected
    assert len(rendered) == 3


def test_a_template_cannot_change_messages():
    template = "{% set _ = messages.append(messages[0]) %}" + PLAIN
    with pytest.raises(Unclear, match="refuses the row"):
        Renderer(template, {})([[USER]], True)
