"""Prompts that end in the opening of an assistant's turn, which the completions go on with: steps of one answer."""

from __future__ import annotations

from dataclasses import replace

from .schema import Row, RowError, Segment


def opened_turn(row: Row) -> Row | None:
    """Returns the row with the opened turn in its completions, whole; None where the prompt opens no turn.

    Raises:
        RowError: there is no prompt before the turn.
    """
    assert isinstance(row.prompt, list)
    *before, begun = row.prompt
    first = [turns[0] for turns in row.completions.values() if turns]
    if begun["role"] != "assistant" or not all(isinstance(one, dict) and one["role"] == "assistant" for one in first):
        return None
    if not before:
        raise RowError("the prompt is nothing but the opening of an assistant's turn")
    whole = {}
    for name, (turn, *rest) in row.completions.items():
        assert isinstance(turn, dict)
        whole[name] = [{**turn, "content": begun["content"] + turn["content"]}, *rest]
    return replace(row, prompt=before, completions=whole)


def behind(segments: list[Segment], start: int) -> list[Segment]:
    """Returns the segments from so many characters on."""
    found: list[Segment] = []
    for text, counts in segments:
        if len(text) > start:
            found.append((text[max(0, start) :], counts))
        start -= len(text)
    return found
