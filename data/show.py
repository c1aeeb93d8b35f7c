"""Rows as the model will see them: prompt and completions as their tokens spell them, and what of them counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, islice
from typing import Any

from rich.console import Group
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from .check import byte_tokenizer, kind_of
from .lengths import LIST
from .options import DataOptions
from .prepare import Prepared, prepare
from .sample import GivenRows
from .shown import printable
from .sources import Source, open_sources
from .table import optional_types

COUNTS, SILENT, PROMPT, TITLE = "green", "dim", "cyan", "bold"


def peek(
    source: Any, rows: int, tokenizer: PreTrainedTokenizerBase | None = None, options: DataOptions | None = None
) -> Group:
    """Lays the first rows of a source out as text: what counts in the loss in green, what does not dimmed.

    Args:
        source: as for ``prepare``.
        rows: how many rows; bad ones among them are shown with the reason.
        tokenizer: whose tokens and chat template; bytes and no template when None.
        options: what training would be told; without them the kind is that of the rows and nothing is truncated.

    Raises:
        ValueError: a source cannot be read, or none of the rows is good.
    """
    parts: list[Source] = []
    for opened in open_sources(source):
        taken = list(islice(opened.read(), rows))
        rows -= len(taken)
        parts.append(GivenRows(opened, taken))
    options = options or DataOptions(kind=kind_of(parts), max_length=None)
    options = replace(options, on_bad_row="skip", mismatched=False, add_eos=options.add_eos and tokenizer is not None)
    tokenizer = tokenizer or byte_tokenizer()
    prepared = prepare([part for part in parts if part.rows], tokenizer, options, progress=False)
    shown = [_row(row, tokenizer, options) for row in prepared.dataset]
    return Group(*shown, *_bad_rows(prepared), *(Text(printable(note)) for note in prepared.report.notes))


def _row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> Text:
    columns = {name: row[name] for name in ("label", *optional_types(options.kind)) if name in row}
    text = Text()
    text.append(printable(row["source"]) + "\n", TITLE)
    if columns:
        text.append(", ".join(f"{name}: {printable(str(value))}" for name, value in columns.items()) + "\n")
    text.append(f"prompt ({len(row['prompt_ids'])})\n", TITLE)
    text.append(printable(tokenizer.decode(row["prompt_ids"])) + "\n", PROMPT)
    for name, ids, mask in _completions(row, options):
        text.append(f"{name} ({len(ids)}, of which {sum(mask)} count)\n", TITLE)
        for counts, part in groupby(zip(ids, mask, strict=True), lambda token: token[1]):
            words = printable(tokenizer.decode([token for token, _ in part]))
            text.append(words, COUNTS if counts else SILENT)
        text.append("\n")
    return text


def _completions(row: dict[str, Any], options: DataOptions) -> list[tuple[str, list[int], list[bool]]]:
    """Returns heading, ids and mask of each completion; those of a list with their scores, the best first."""
    if options.kind == "lists":
        scores, ids, masks = row["scores"], row[f"{LIST}_ids"], row[f"{LIST}_mask"]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [(f"completion of score {scores[place]:g}", ids[place], masks[place]) for place in order]
    names = ["completion"] if options.kind == "labelled" else ["chosen", "rejected"] + ["gold"] * options.gold
    return [(name, row[f"{name}_ids"], row[f"{name}_mask"]) for name in names]


def _bad_rows(prepared: Prepared) -> list[Text]:
    return [Text(f"{printable(bad.source)}: {printable(bad.reason)}", "red") for bad in prepared.report.bad_rows]
