"""A chunk of raw rows to token ids: what every worker does, the same whichever worker does it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from .chunks import Chunk, Located
from .control import ControlTokens, Spelled
from .formats import KNOWN_FIELDS, parse_row
from .keys import row_key
from .lists import ordered_pairs
from .options import DataOptions
from .pack import Packed, pack
from .schema import Broken, DataReport, Row, RowError, check_characters
from .table import encoded_batch, encoded_schema
from .template import ChatTemplate, Rendering
from .tokenise import Encoded, Tokeniser, merge_equal, truncate
from .tokens import holds_ids, parse_ids


@dataclass(slots=True)
class Unit:
    """A good row: a pair, a labelled completion, or a list.

    Attributes:
        number: which row of its chunk it is. place: file and line.
        key: of its content. label: of a labelled row.
        columns: its optional columns; named rewards are mappings still.
        pairs: of a list that is read as pairs, the places of better and worse; None for other rows.
        repeated, left_out: answers of a list that became one with another; that the run does not take.
        tied: answers of a list with a score that float32 does not tell from another's.
        lent_group: whether its group is a public set's own, and not the user's: then other rows may lack one.
        raw: the row as it was read, kept where its rewards are named, which other rows may contradict.
        cut_prompt, cut_completions: what truncation touched.
        ends_in_space, repeats_prompt: what is odd about a standard row.
        spelled: what became of the control tokens that its text spells.
    """

    number: int
    place: str
    key: bytes
    label: bool | None
    columns: dict[str, Any]
    lent_group: bool
    raw: Any
    cut_prompt: bool
    cut_completions: int
    ends_in_space: bool
    repeats_prompt: bool
    spelled: Spelled
    pairs: tuple[tuple[int, int], ...] | None = None
    repeated: int = 0
    left_out: int = 0
    tied: int = 0

    def count(self, kind: str) -> int:
        """Returns how many pairs, labelled completions or lists it is for a loss of that kind of rows."""
        return 1 if kind == "lists" or self.pairs is None else len(self.pairs)

    def size(self, kind: str) -> int:
        """Returns how many rows of the table it becomes: a labelled loss gets each pair as two."""
        return self.count(kind) * (2 if kind == "labelled" and self.label is None else 1)


@dataclass(slots=True)
class Outcome:
    """What became of a chunk of rows.

    Attributes:
        rows: how many there were. units: the good ones, in order.
        batch: their token ids, masks and keys, in ``Unit.size`` rows for each unit.
        bad: number, row and reason of every other one, in order.
        ignored: fields that nothing reads. notes: sentences for the report.
    """

    rows: int
    units: list[Unit]
    batch: pa.RecordBatch
    bad: list[tuple[int, Located, str]] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class Encoder:
    """Reads, checks, renders, tokenises and cuts chunks of rows; remembers nothing from one chunk to the next."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> None:
        self.options, self.schema = options, encoded_schema(options)
        self.report, self.tokenizer = DataReport(), tokenizer
        self.control = ControlTokens(tokenizer, options.special_tokens_in_text)
        self.template = ChatTemplate(tokenizer, options, self.report)
        self.tokeniser = Tokeniser(tokenizer, options.add_eos)
        self.end = tokenizer.eos_token_id

    def __call__(self, chunk: Chunk) -> Outcome:
        with _uncollected():
            return self._outcome(chunk)

    def _outcome(self, chunk: Chunk) -> Outcome:
        rows = chunk.rows()
        self.report.notes = []
        reasons: dict[int, str] = {}
        parsed: dict[int, tuple[Row, Rendering, Spelled]] = {}
        known: dict[int, Encoded] = {}
        ignored: set[str] = set()
        for number, (_, raw) in enumerate(rows):
            try:
                parsed[number] = self._parsed(raw, chunk, number, known)
                ignored.update(parsed[number][0].unread)
            except RowError as error:
                reasons[number] = str(error)
        encodings = self.tokeniser.encode([rendering for _, rendering, _ in parsed.values()])
        whole: list[tuple[int, Encoded]] = []
        for number, encoded in zip(parsed, encodings, strict=True):
            encoded = known.get(number, encoded)
            try:
                if number not in known:
                    _check_words(encoded, self.end)
                truncate(encoded, self.options, self.tokeniser.bos)
                merge_equal(parsed[number][0], encoded, self.options)
            except RowError as error:
                reasons[number] = str(error)
                continue
            whole.append((number, encoded))
        packed = pack([encoded for _, encoded in whole])
        units = [
            _unit(number, rows[number], parsed[number], encoded, one)
            for (number, encoded), one in zip(whole, packed, strict=True)
        ]
        for unit in units:
            scores = parsed[unit.number][0].scores
            if scores is not None and self.options.kind != "lists":
                unit.pairs = ordered_pairs(scores, self.options.lists_as)
        kept = [(parsed[unit.number][0], one, unit.pairs) for unit, one in zip(units, packed, strict=True)]
        bad = [(number, rows[number], reasons[number]) for number in sorted(reasons)]
        return Outcome(len(rows), units, encoded_batch(self.schema, kept), bad, ignored, self.report.notes)

    def _parsed(self, raw: Any, chunk: Chunk, number: int, known: dict[int, Encoded]) -> tuple[Row, Rendering, Spelled]:
        """Returns a row as it is to be tokenised; one that is token ids already goes into ``known``.

        Raises:
            RowError: why it cannot be used.
        """
        if isinstance(raw, Broken):
            raise RowError(raw.reason)
        if holds_ids(raw):
            row, known[number] = parse_ids(raw, self.tokenizer, self.options)
            row.unread = tuple(raw.keys() - KNOWN_FIELDS)
            return row, Rendering("", {}, False), ""
        row, spelled = self.control.treat(parse_row(raw, self.options, chunk.format))
        rendering = self.template.render(row)
        check_characters(_texts(row, rendering))
        if row.read_as:
            self.report.note(f"{chunk.source}: read as {row.read_as}")
        return row, rendering, spelled


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spares the rows of a chunk, which hold no circles, the search for some after every few of them: a tenth of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _unit(
    number: int, located: Located, parsed: tuple[Row, Rendering, Spelled], encoded: Encoded, packed: Packed
) -> Unit:
    row, rendering, spelled = parsed
    values = [value for name in row.columns for value in _flat(row.columns[name])]
    named = any(isinstance(value, dict) for value in values)
    standard = rendering.special_tokens
    repeats = standard and all(reply[0][0].startswith(rendering.prompt) for reply in rendering.completions.values())
    return Unit(
        number=number,
        place=located[0],
        key=row_key(packed.keys),
        label=row.label,
        columns=row.columns,
        lent_group=row.lent_group,
        raw=located[1] if named else None,
        cut_prompt=encoded.cut_prompt,
        cut_completions=encoded.cut_completions,
        ends_in_space=standard and rendering.prompt[-1:].isspace(),
        repeats_prompt=repeats,
        spelled=spelled,
        repeated=row.repeated,
        left_out=row.left_out,
        tied=row.tied,
    )


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_words(encoded: Encoded, end: int | None) -> None:
    """A completion that is the end token alone, which plain text can spell, is an empty one."""
    for name, one in encoded.completions.items():
        if one.ids and one.ids[0] == end and set(one.ids) == {end}:
            raise RowError(f"{name} is nothing but the end of the text")


def _texts(row: Row, rendering: Rendering) -> Iterator[str]:
    yield rendering.prompt
    for segments in rendering.completions.values():
        yield from (text for text, _ in segments)
    yield str(row.columns.get("group", ""))
