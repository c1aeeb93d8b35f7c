"""Prompts to be answered, from rows of any form: as the data has them, as token ids, and what people answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from .control import ControlTokens
from .formats import parse_row
from .messages import as_messages, as_tools
from .options import DataOptions
from .schema import SHOWN_BAD_ROWS, BadRow, Broken, DataReport, Message, Row, RowError
from .sources import open_sources
from .template import ChatTemplate
from .tokenise import Tokeniser

Prompt = str | list[Message]
_ANSWERED = ("chosen", "rejected", "completion", "completions", "messages", "conversations", "instruction")


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt that a model is to answer.

    Attributes:
        source: file and line. id: 32 hex digits of its content, as the data has it.
        prompt: text or messages. ids: its tokens, up to where an answer begins.
        human: what a person answered (chosen or completion of the row), as text; human_ids: as tokens that may follow
            ``ids``. None where the row has none, or where the template writes something else between.
        group: of the row.
    """

    source: str
    id: str
    prompt: Prompt
    ids: list[int]
    human: str | None = None
    human_ids: list[int] | None = None
    group: str | None = None


@dataclass
class AskedPrompts:
    """The prompts of a source, each once, in order.

    Attributes:
        rows: how many rows there were. repeated: how many had the prompt of an earlier one, and were left out.
        notes: sentences on what the template did.
    """

    prompts: list[AskedPrompt] = field(default_factory=list)
    rows: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)


def read_prompts(source: Any, tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None) -> AskedPrompts:
    """Reads the prompts of rows; of those that stand in it more than once, the first.

    A row may be a prompt alone (``prompt`` as text or messages, perhaps with ``tools`` and ``group``), or any row that
    can be trained on. Messages go through the chat template, which then opens the assistant's turn; where they end in
    an assistant's turn, the answer goes on with it.

    Raises:
        ValueError: bad rows (the first twenty by file and line), none at all, or a source that cannot be read.
    """
    reader, found, seen = _Reader(tokenizer, options or DataOptions()), AskedPrompts(), set[str]()
    bad: list[BadRow] = []
    for part in open_sources(source):
        for place, raw in part.read():
            found.rows += 1
            try:
                if isinstance(raw, Broken):
                    raise RowError(raw.reason)
                one = reader.read(place, raw, part.format)
            except RowError as error:
                bad.append(BadRow(place, str(error)))
                continue
            if one.id in seen:
                found.repeated += 1
                continue
            seen.add(one.id)
            found.prompts.append(one)
    if bad:
        shown = "\n".join(f"  {one.source}: {one.reason}" for one in bad[:SHOWN_BAD_ROWS])
        raise ValueError(f"{len(bad)} of {found.rows} rows have no prompt that can be answered:\n{shown}")
    if not found.prompts:
        raise ValueError(f"no prompt to answer: {source} holds no row")
    found.notes = reader.report.notes
    return found


def prompt_id(prompt: Prompt, tools: Sequence[Any] | None = None) -> str:
    """Returns the name of a prompt by its content: 32 hex digits of sha256 over it as JSON with sorted keys."""
    content = [prompt, list(tools)] if tools else prompt
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


class _Reader:
    """Rows to prompts, by the same template and tokeniser that training goes through."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> None:
        self.options, self.report = replace(options, kind="labelled", default_label=True), DataReport()
        self.control = ControlTokens(tokenizer, options.special_tokens_in_text)
        self.template = ChatTemplate(tokenizer, options, self.report)
        self.tokeniser = Tokeniser(tokenizer, options.add_eos)

    def read(self, place: str, raw: Mapping[str, Any], form: str | None) -> AskedPrompt:
        answered = form is not None or any(raw.get(name) is not None for name in _ANSWERED)
        row = parse_row(raw, self.options, form) if answered else _alone(raw)
        row = replace(row, completions={name: row.completions[name] for name in _best(row)})
        identity = prompt_id(row.prompt, row.tools)
        human = None if not row.completions else "".join(_text(one) for one in next(iter(row.completions.values())))
        group = row.columns.get("group")
        prompt = row.prompt
        if raw.get("prompt_ids") is not None:
            return AskedPrompt(place, identity, prompt, _ids(raw["prompt_ids"]), human, None, group)
        treated, _ = self.control.treat(row)
        [encoded] = self.tokeniser.encode([self.template.opening(treated)])
        if not encoded.prompt:
            raise RowError("the prompt has no token")
        return AskedPrompt(place, identity, prompt, encoded.prompt, human, self._human(treated, encoded.prompt), group)

    def _human(self, row: Row, opening: list[int]) -> list[int] | None:
        """Returns the tokens of the row's own completion behind the opening that a model is given."""
        if not row.completions:
            return None
        [encoded] = self.tokeniser.encode([self.template.render(row)])
        whole = encoded.prompt + next(iter(encoded.completions.values())).ids
        return whole[len(opening) :] if whole[: len(opening)] == opening and len(whole) > len(opening) else None


def _alone(raw: Mapping[str, Any]) -> Row:
    """A row that is a prompt, and nothing was answered yet."""
    prompt, group = raw.get("prompt"), raw.get("group")
    if prompt is None:
        raise RowError("prompt is missing")
    if not isinstance(prompt, (str, list)):
        raise RowError(f"prompt is of type {type(prompt).__name__}; allowed are text and a list of messages")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError("prompt is empty")
    else:
        prompt = as_messages(prompt, "prompt")
    tools = None if raw.get("tools") is None else as_tools(raw["tools"])
    return Row(prompt, {}, tools=tools, columns={} if group is None else {"group": str(group)})


def _best(row: Row) -> list[str]:
    """The completion that a person would stand by: the chosen one, or the only one where it is no bad one."""
    if row.label is False:
        return []
    return [name for name in row.completions if name in ("chosen", "completion")]


def _text(part: Any) -> str:
    return str(part.get("content") or "") if isinstance(part, dict) else str(part[0])


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not value or not all(type(one) is int and one >= 0 for one in value):
        raise RowError("prompt_ids must be a list of token ids, at least one")
    return value
