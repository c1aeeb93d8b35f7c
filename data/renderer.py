"""Conversations to text as ``transformers`` renders them, with less work for plain ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from inspect import signature
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from .schema import Message, RowError

Span = tuple[int, int]
Marked = tuple[str, list[Span] | None]
"""A rendered conversation, and where the template marks it as generated; None where it marks nothing."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLAIN = (str, int, float, bool, type(None))


class Unclear(RowError):
    """Why a template cannot serve a row that another template of the same model might."""


class Renderer:
    """Renders with one template.

    ``transformers`` copies every message, its globals and its settings for each rendering, which takes twice as long as
    the rendering. Where all of them are words and numbers, which no template can change, they are given as they are.

    Args:
        template: the chat template.
        arguments: what it is given beside messages and tools.
    """

    def __init__(self, template: str, arguments: Mapping[str, Any]) -> None:
        self.template, self.arguments = template, dict(arguments)
        self.marks = _GENERATION.search(template) is not None
        self.dated = "strftime_now" in template
        self._last: dict[bool, tuple[list[Message], str]] = {}  # by whether the prompt for a reply follows

    def __call__(
        self,
        conversations: list[list[Message]],
        generation: bool,
        spans: bool = False,
        begun: bool = False,
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[Marked]:
        """Renders conversations of one row.

        Args:
            conversations: lists of messages. generation: whether the prompt for a reply follows them.
            spans: whether to say what the template marks. begun: whether the last turn stays open.
            tools: what may be called. arguments: the row's own.

        Raises:
            Unclear: the template refuses.
        """
        marks = spans and self.marks
        try:
            shared = None if marks or begun or arguments or tools is not None else self._shared
            if shared is not None and all(map(_is_plain, conversations)):
                return [(self._written(shared, turns, generation), None) for turns in conversations]
            rendered: tuple[list[str], list[list[Span]]] = chat_template_utils.render_jinja_template(
                conversations=conversations,
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=generation,
                continue_final_message=begun,
                **{**self.arguments, **(arguments or {})},
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # templates refuse in many ways
            raise Unclear(f"the chat template refuses the row: {error}") from error
        if not marks:
            return [(text, None) for text in rendered[0]]
        return [(text, [(start, end) for start, end in found]) for text, found in zip(*rendered, strict=True)]

    @cached_property
    def _compiled(self) -> Any:
        compiler = getattr(chat_template_utils, "_compile_jinja_template", None)
        return compiler and compiler(self.template)

    @cached_property
    def _shared(self) -> dict[str, Any] | None:
        """What all renderings are given, or None where they have to be copies."""
        reserved = {"messages", *signature(chat_template_utils.render_jinja_template).parameters}
        if reserved & self.arguments.keys() or not all(map(_is_word, _leaves(self.arguments))) or not self._compiled:
            return None
        return {**self._compiled.globals, "tools": None, "documents": None, **self.arguments}

    def _written(self, shared: dict[str, Any], turns: list[Message], generation: bool) -> str:
        last, text = self._last.get(generation, (None, ""))
        if last != turns:  # rows of one prompt stand together in many sets
            given = {**shared, "messages": turns, "add_generation_prompt": generation}
            written = self._compiled
            context = written.environment.context_class(written.environment, given, written.name, written.blocks)
            text = "".join(written.root_render_func(context))
            self._last[generation] = turns, text
        return text


def _is_plain(turns: list[Message]) -> bool:
    """True for messages of nothing but a role and words."""
    return all(len(turn) == 2 and type(turn["role"]) is type(turn["content"]) is str for turn in turns)


def _is_word(value: object) -> bool:
    return type(value) in _PLAIN


def _leaves(arguments: Mapping[str, Any]) -> Iterator[Any]:
    for value in arguments.values():
        yield from value if isinstance(value, list) else [value]
