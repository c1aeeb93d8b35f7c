"""The prompts and better completions of rows as they stood in the data, for judges and for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from alignlab.data import DataOptions, RowError, open_sources, parse_row

Dialogue = tuple[str | list[dict[str, Any]], str]  # prompt, and the chosen (desirable) completion as text


def read_dialogues(source: Any, places: Collection[str]) -> dict[str, Dialogue]:
    """Returns place -> (prompt, chosen completion) of the rows that stand in these places of a source.

    A place is what the column ``source`` of a tokenised dataset says: "file.jsonl:12". Places that cannot be found
    again (a generator that was read, rows that were tokenised already) are left out.
    """
    wanted, found = set(places), dict[str, Dialogue]()
    if source is None or "prompt_ids" in (getattr(source, "column_names", None) or ()):
        return {}
    for part in open_sources(source):
        for place, raw in part.read():
            if place in wanted and isinstance(raw, dict):
                try:
                    row = parse_row(raw, DataOptions(kind="labelled"), part.format)
                except RowError:  # a bad row that was skipped
                    continue
                found[place] = row.prompt, _text(row.completions["chosen" if row.is_pair else "completion"])
                if len(found) == len(wanted):
                    return found
    return found


def _text(completion: list[Any]) -> str:
    """Returns the text of a completion: that of its segments, or of its messages."""
    parts = [str(one.get("content") or "") if isinstance(one, dict) else str(one[0]) for one in completion]
    return "".join(parts)
