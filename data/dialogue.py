"""Raw dialogues as HH-RLHF has them: one text of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." turns."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .schema import RowError, Segment

ASSISTANT = "\n\nAssistant:"
_DIALOGUE = re.compile(r"\s*(Human|Assistant):")
_NOT_ASSISTANT = re.compile(r"\n\nHuman:.*?(?:\n\nAssistant:|\Z)|\n\nAssistant:", re.DOTALL)


def common_prefix(texts: Iterable[str]) -> str:
    """Returns what all texts open with, character by character."""
    first, *others = list(texts)
    shortest, length = 0, min(map(len, [first, *others]))
    while shortest < length:  # by halves: comparing slices is far quicker than characters
        middle = (shortest + length + 1) // 2
        if all(text.startswith(first[:middle]) for text in others):
            shortest = middle
        else:
            length = middle - 1
    return first[:shortest]


def is_dialogue(text: str) -> bool:
    """Whether the text opens with a turn's name and has an assistant's turn."""
    return _DIALOGUE.match(text) is not None and ASSISTANT in text


def split_dialogues(dialogues: dict[str, str]) -> tuple[str, dict[str, list[Segment]]]:
    """Splits dialogues that open alike into their prompt and what follows it in each.

    The prompt ends with the last "\\n\\nAssistant:" that all of them share. In most rows the assistant's last reply
    follows. Where dialogues part earlier, several turns follow, and only the assistant's words count in the loss.

    Raises:
        RowError: the dialogues share no assistant's turn, or one has nothing to say after it.
    """
    shared = common_prefix(dialogues.values())
    end = shared.rfind(ASSISTANT)  # of a dialogue alone: its last reply is the completion
    if end < 0:
        raise RowError(f"{' and '.join(dialogues)} share no {ASSISTANT!r} turn")
    end += len(ASSISTANT)
    return shared[:end], {name: reply_segments(text[end:], name) for name, text in dialogues.items()}


def reply_segments(text: str, field: str) -> list[Segment]:
    """Splits what follows a prompt into the assistant's words, which count, and everything else, which does not.

    Raises:
        RowError: the assistant says nothing in its first or its last turn.
    """
    segments: list[Segment] = []
    position = 0
    others = ""
    for match in _NOT_ASSISTANT.finditer(text):
        others = match.group()
        segments += [(text[position : match.start()], True), (others, False)]
        position = match.end()
    segments.append((text[position:], True))
    if not segments[0][0].strip():
        raise RowError(f"{field} is empty after the prompt's last 'Assistant:'")
    if not segments[-1][0].strip() and others.endswith("Assistant:"):
        raise RowError(f"{field} ends with an empty assistant's turn")
    return [segment for segment in segments if segment[0]]
