"""Control tokens that are spelled out in the text of rows: found, and cut so that they stay text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from .schema import Row, RowError

CUT = "\ufdd0"
"""A noncharacter, which no text has: what stands on either side of it is tokenised apart, and it is dropped."""

Spelled = Literal["", "kept", "split"]
_THOUGHTS = ("<think>", "</think>")  # which replies hold by convention, and which open no turn


class ControlTokens:
    """Looks for the texts of a tokenizer's control tokens in rows, and sees to it that they cannot become tokens.

    ``<|im_end|>`` in the words of a user would end the turn, and let the user write the next one: a tokenizer takes
    the template's own and the user's alike. Cut behind its first character, it is tokenised as any other text.

    Args:
        mode: "keep", "split" or "error"; "auto" splits in messages, and keeps in plain rows, which may be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mode: Literal["auto", "keep", "split", "error"]) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        words = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        words -= set(_THOUGHTS)
        longest_first = sorted(filter(None, words), key=lambda word: (-len(word), word))
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.mode = mode

    def treat(self, row: Row) -> tuple[Row, Spelled]:
        """Returns a row as it is to be rendered, and what became of the control tokens that its text spells.

        Raises:
            RowError: it spells one, and rows that do are bad.
        """
        if self.pattern is None:
            return row, ""
        parts = {"prompt": row.prompt, **row.completions, "tools": row.tools}
        found = {name: word for name, value in parts.items() if (word := self._first(value)) is not None}
        if not found:
            return row, ""
        if self.mode == "error":
            name, word = next(iter(found.items()))
            raise RowError(f"{name} spells the control token {word}; special_tokens_in_text: split reads it as text")
        if self.mode == "keep" or (self.mode == "auto" and not row.is_conversational):
            return row, "kept"
        completions = {name: self._cut(value) for name, value in row.completions.items()}
        return replace(row, prompt=self._cut(row.prompt), completions=completions, tools=self._cut(row.tools)), "split"

    def _first(self, value: Any) -> str | None:
        """Returns the first control token that any text in a value spells."""
        assert self.pattern is not None
        if isinstance(value, str):
            match = self.pattern.search(value)
            return match and match[0]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        for item in inner:
            if (word := self._first(item)) is not None:
                return word
        return None

    def _cut(self, value: Any) -> Any:
        assert self.pattern is not None
        if isinstance(value, str):
            return self.pattern.sub(_behind_first, value)
        if isinstance(value, dict):
            return {key: self._cut(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._cut, value))
        return value


def _behind_first(match: re.Match[str]) -> str:
    return f"{match[0][:1]}{CUT}{match[0][1:]}"
