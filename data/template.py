"""The chat template: where a rendered conversation is prompt, where completion, and which of it the assistant said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .opened import behind, opened_turn
from .options import DataOptions
from .renderer import Marked, Renderer, Span, Unclear
from .schema import DataReport, Message, Row, RowError, Segment, check_characters

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_WORDS = ("content", *_THOUGHTS)
_SAID = (*_WORDS, "tool_calls")


@dataclass(slots=True)
class Rendering:
    """A row as text, ready for the tokenizer.

    Attributes:
        prompt: text of the prompt.
        completions: name -> stretches of text and whether each counts.
        special_tokens: whether the tokenizer's own BOS goes in front of the prompt, and EOS behind completions
            (a chat template writes both itself).
    """

    prompt: str
    completions: dict[str, list[Segment]]
    special_tokens: bool


class ChatTemplate:
    """Renders conversational rows with the tokenizer's chat template.

    The prompt is what the template renders for the prompt's messages with its generation prompt, and a completion is
    the rest of what it renders for all messages. Templates that render the opening differently alone than followed by
    a reply (an empty thought block, for one) are cut where the tokens of the two part.

    Completions of one assistant's turn count whole; of several turns, only what the assistant says counts. Where the
    template marks it with ``{% generation %}``, exactly the marked text counts.

    Rows that the template cannot serve (it refuses them, does not render turns one after the other, or leaves words,
    thoughts or tool calls out) are rendered with the training template that TRL has for it, if it has one, and are bad
    rows otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DataOptions, report: DataReport) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.report = report
        self._templates: dict[bool, str] = {}  # of rows with tools, and without
        self._renderers: dict[str, Renderer] = {}

    def render(self, row: Row) -> Rendering:
        """Renders one row.

        Raises:
            RowError: the template refuses the row, or prompt and completions cannot be told apart.
            ValueError: the tokenizer has no chat template.
        """
        if not row.is_conversational:
            return Rendering(str(row.prompt), {name: list(value) for name, value in row.completions.items()}, True)  # type: ignore[arg-type]
        template = self._template(row)
        if (begun := opened_turn(row)) is not None:
            return self._going_on(row, begun)
        try:
            return self._rendered(row, template)
        except Unclear as error:
            if self._training_template is None:
                raise
            try:
                rendering = self._rendered(row, self._training_template)
            except RowError:
                raise error from None
        self.report.note(
            "TRL's training template renders the rows that the chat template cannot serve: "
            "it refuses them, does not render their turns one after the other, or leaves thoughts or tool calls out"
        )
        return rendering

    def _going_on(self, row: Row, whole: Row) -> Rendering:
        """Renders a row whose completions go on with a turn that the prompt opens: its opening is prompt."""
        rendering, opened = self.render(whole), self.opening(row).prompt
        for name, segments in rendering.completions.items():
            if not (rendering.prompt + "".join(text for text, _ in segments)).startswith(opened):
                raise RowError(f"{name}: the chat template does not render the opened turn as it renders the whole one")
            rendering.completions[name] = behind(segments, len(opened) - len(rendering.prompt))
        return Rendering(opened, rendering.completions, False)

    def opening(self, row: Row) -> Rendering:
        """Renders the prompt alone, up to where an answer begins; one that ends in an assistant's turn stays open.

        Raises:
            RowError: the template refuses the row.
            ValueError: the tokenizer has no chat template.
        """
        if not row.is_conversational:
            return Rendering(str(row.prompt), {}, True)
        assert isinstance(row.prompt, list)
        begun = row.prompt[-1]["role"] == "assistant"
        return Rendering(self._text(row, self._template(row), row.prompt, not begun, begun)[0], {}, False)

    def _rendered(self, row: Row, template: str) -> Rendering:
        assert isinstance(row.prompt, list)
        completions: dict[str, list[Message]] = row.completions  # type: ignore[assignment]
        generation = all(turns[0]["role"] == "assistant" for turns in completions.values())
        prompt, _ = self._text(row, template, row.prompt, generation)
        conversations = [row.prompt + turns for turns in completions.values()]
        whole = dict(zip(completions, self._texts(row, template, conversations, False, spans=True), strict=True))
        end = self._prompt_end(prompt, [text for text, _ in whole.values()])
        segments: dict[str, list[Segment]] = {}
        for name, (text, marked) in whole.items():
            self._check_whole(row, template, name, text)
            spans = marked if marked is not None else self._turn_spans(row, template, text, name, end)
            segments[name] = self._without_empty_thoughts(_cut(text, end, spans))
            if not any(counts and stretch.strip() for stretch, counts in segments[name]):
                raise RowError(f"{name}: the chat template renders nothing for it")
        return Rendering(text[:end], segments, False)

    @cached_property
    def _training_template(self) -> str | None:
        """TRL's variant of the tokenizer's template that renders turns one after the other and marks what counts."""
        from trl.chat_template_utils import get_training_chat_template  # takes seconds, and few rows need it

        try:
            template: str | None = get_training_chat_template(self.tokenizer)
        except (TemplateError, TypeError, ValueError, KeyError):  # one that it does not know, or cannot try
            return None
        return template

    def _check_whole(self, row: Row, template: str, name: str, text: str) -> None:
        """Looks whether the template wrote all that the turns say: words, thoughts and tool calls."""
        assert isinstance(row.prompt, list)
        before, turns = len(row.prompt), [*row.prompt, *row.completions[name]]
        for index, turn in enumerate(turns):
            assert isinstance(turn, dict)
            for field in _SAID if len(turn) > 2 else ("content",):
                if not turn.get(field) or not self._leaves_out(row, template, turns, index, field, text):
                    continue
                if index < before and field in _WORDS:
                    self.report.note(f"the chat template leaves {field} out of turns of the prompt")
                    continue
                place = f"prompt[{index}]" if index < before else f"{name}[{index - before}]"
                raise Unclear(f"{place}: the chat template leaves {field} out")

    def _leaves_out(self, row: Row, template: str, turns: list[Any], index: int, field: str, text: str) -> bool:
        """Whether the rendering is the same without a field of a turn, or has nothing of a thought."""
        turn = turns[index]
        found = field in _WORDS and str(turn[field]).strip() in text
        if field == "content" and found:
            return False  # nearly every turn of every row: the exact answer would cost a rendering of each
        if field in _THOUGHTS and not found:
            return True
        other = {key: turn[key] for key in turn if key != field}
        if field == "content":  # some templates refuse a turn that says nothing
            other[field] = f"{turn[field]} and more"
        return self._text_or_none(row, template, [*turns[:index], other, *turns[index + 1 :]]) == text

    def _text_or_none(self, row: Row, template: str, messages: list[Message]) -> str | None:
        try:
            return self._text(row, template, messages, False)[0]
        except RowError:  # the template refuses a turn without it, so it does look at it
            return None

    def _without_empty_thoughts(self, segments: list[Segment]) -> list[Segment]:
        """Says what becomes of empty thoughts that the template writes; if told so, takes them out of the count."""
        if not any(counts and _EMPTY_THOUGHT.search(stretch) for stretch, counts in segments):
            return segments
        if self.options.score_empty_thoughts:
            self.report.note(
                "replies open with an empty thought (<think></think>), whose tokens count; "
                "score_empty_thoughts: false leaves them out"
            )
            return segments
        self.report.note("replies open with an empty thought (<think></think>), whose tokens do not count")
        found: list[Segment] = []
        for stretch, counts in segments:
            spans = [match.span() for match in _EMPTY_THOUGHT.finditer(stretch)] if counts else []
            silent = _cut(stretch, 0, spans)  # True where the thought is empty
            found += [(part, counts and not empty) for part, empty in silent]
        return found

    def _text(self, row: Row, template: str, messages: list[Message], generation: bool, begun: bool = False) -> Marked:
        return self._texts(row, template, [messages], generation, begun=begun)[0]

    def _texts(
        self,
        row: Row,
        template: str,
        conversations: list[list[Message]],
        generation: bool,
        spans: bool = False,
        begun: bool = False,
    ) -> list[Marked]:
        """Renders conversations of one row in one call.

        Args:
            spans: also say what the template marks of each.
            begun: leave the last turn open, for somebody to go on with.
        """
        render = self._renderer(template)
        return render(conversations, generation, spans, begun, row.tools, row.template_kwargs)

    def _renderer(self, template: str) -> Renderer:
        if template not in self._renderers:
            arguments = {**self.tokenizer.special_tokens_map, **self.options.chat_template_kwargs}
            self._renderers[template] = Renderer(template, arguments)
        return self._renderers[template]

    def _template(self, row: Row) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "a conversational row was found, and the tokenizer has no chat template; "
                "give the tokenizer one, or give prompt and completions as plain text"
            )
        with_tools = row.tools is not None
        if with_tools not in self._templates:
            self._templates[with_tools] = self.tokenizer.get_chat_template(None, row.tools)
        template = self._templates[with_tools]
        if self._renderer(template).dated:
            self.report.note(
                "the chat template may write today's date into prompts; if it does, pass the date in "
                "chat_template_kwargs, or prompts (and cached scores) change from day to day"
            )
        return template

    def _prompt_end(self, prompt: str, wholes: list[str]) -> int:
        """Where the prompt ends, in characters: its rendering, or the part of it that all completions share."""
        if all(text.startswith(prompt) for text in wholes):
            return len(prompt)
        self.report.note(
            "the chat template renders a prompt differently alone than followed by a reply; "
            "the prompt is cut where their tokens part"
        )
        if not self.tokenizer.is_fast:
            raise RowError("the chat template renders no prefix of itself, which needs a fast tokenizer to be cut")
        check_characters([prompt, *wholes])
        encoded = self.tokenizer([prompt, *wholes], add_special_tokens=False, return_offsets_mapping=True)
        own, *others = encoded["input_ids"]
        length = min(_common_length(own, ids) for ids in others)
        end: int = encoded["offset_mapping"][0][length - 1][1] if length else 0
        if end == 0 or not all(text.startswith(prompt[:end]) for text in wholes):
            raise RowError("the chat template renders the prompt and the whole conversation without a shared opening")
        return end

    def _turn_spans(self, row: Row, template: str, text: str, name: str, end: int) -> list[Span]:
        """Where the assistant speaks, found by rendering the conversation turn by turn."""
        assert isinstance(row.prompt, list)
        turns: list[Message] = row.completions[name]  # type: ignore[assignment]
        if len(turns) == 1:
            return [(end, len(text))]
        spans = []
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = text[:end] if index == 0 else self._text(row, template, row.prompt + turns[:index], True)[0]
            last = index == len(turns) - 1
            after = text if last else self._text(row, template, row.prompt + turns[: index + 1], False)[0]
            if not (text.startswith(before) and text.startswith(after)):
                raise Unclear(
                    f"{name} has several turns, and the chat template does not render its turns one after the other; "
                    "mark the assistant's words with {% generation %} in the template"
                )
            spans.append((len(before), len(after)))
        return spans


def _cut(text: str, start: int, spans: list[Span]) -> list[Segment]:
    segments: list[Segment] = []
    for span_start, span_end in spans:
        span_start = max(span_start, start)
        if span_end > span_start:
            segments += [(text[start:span_start], False), (text[span_start:span_end], True)]
            start = span_end
    return [segment for segment in [*segments, (text[start:], False)] if segment[0]]


def _common_length(ids: list[int], others: list[int]) -> int:
    differ = (index for index, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other)
    return next(differ, min(len(ids), len(others)))
