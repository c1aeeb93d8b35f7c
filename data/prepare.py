"""Rows from anywhere to one table of token ids, with an account of every row."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from datasets import Dataset, DatasetInfo, Features
from datasets.table import InMemoryTable
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .columns import RewardOrder
from .formats import parse_row
from .mismatch import mismatched_columns
from .options import DataOptions
from .schema import SHOWN_BAD_ROWS, BadRow, Broken, DataReport, Row, RowError, SourceReport
from .sources import Located, Source, open_sources
from .table import TableBuilder
from .template import ChatTemplate, Rendering
from .tokenise import Encoded, Tokeniser, truncate

BATCH = 1000


@dataclass
class Prepared:
    """Rows ready for the collator.

    Attributes:
        dataset: Arrow-backed columns. Pairs: ``prompt_ids``, ``chosen_ids``, ``chosen_mask``, ``rejected_ids``,
            ``rejected_mask`` and perhaps ``gold_ids``, ``gold_mask``. Labelled: ``prompt_ids``, ``completion_ids``,
            ``completion_mask``, ``label``, ``pair`` and perhaps ``mismatched_ids``, ``mismatched_mask``. Ids are int32,
            masks bool (True where the token counts in the loss). Both: ``source``, ``prompt_key`` and for each
            completion its content key (``chosen_key``, ...; 16 bytes), and what rows have of ``group``, ``weight``,
            ``margin``, ``score_chosen``, ``score_rejected`` and rewards (lists of float64).
        report: where every row went.
    """

    dataset: Dataset
    report: DataReport


def prepare(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Reads, checks and tokenises preference rows.

    Args:
        source: a path (jsonl, json, csv, parquet, arrow; ``.gz`` of the text ones), a folder of such files, a hub id, a
            mapping ``{path, weight, split, name, columns, format}``, a list of these, a ``datasets.Dataset``, or an
            iterable of rows.
        tokenizer: with a chat template where rows are conversations.
        options: what the loss wants; the defaults of ``DataOptions`` when None.
        seed: which rows a mixture's fractional weights pick.
        progress: whether to show a progress bar (the first process of several, say).

    Raises:
        ValueError: bad rows (naming the first twenty and counting all) unless they are skipped; no row left; a source
            that cannot be read.
    """
    options = options or DataOptions()
    sources = open_sources(source)
    with _RejectedRows(options) as rejected:
        reader = _Reader(sources, tokenizer, options, rejected, progress)
        units = reader.read()
        report = reader.report
        if report.rows_rejected and options.on_bad_row == "error":
            raise ValueError(report.bad_rows_text() + '\non_bad_row="skip" trains on the others and writes these aside')
        if not report.rows_kept:
            raise ValueError(f"no row is left to train on: {report.bad_rows_text()}")
    assert report.rows_read == report.rows_kept + report.rows_rejected, "a row disappeared"
    chosen = _weigh(sources, report, units, seed)
    table = reader.builder.table(chosen, report)
    if options.mismatched:
        for name, column in mismatched_columns(table, options).items():
            table = table.append_column(name, column)
    report.reward_names = reader.reward_order.names
    report.fingerprint = hashlib.blake2b(reader.digest.digest() + chosen.tobytes(), digest_size=16).hexdigest()
    info = DatasetInfo(features=Features.from_arrow_schema(table.schema))
    return Prepared(Dataset(InMemoryTable(table), info=info, fingerprint=report.fingerprint), report)


class _Reader:
    """Goes through all sources once, in batches, and builds the table."""

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerBase,
        options: DataOptions,
        rejected: _RejectedRows,
        progress: bool,
    ) -> None:
        self.sources, self.options, self.rejected, self.progress = sources, options, rejected, progress
        self.report = DataReport(sources=[SourceReport(str(source), float(source.weight)) for source in sources])
        self.template = ChatTemplate(tokenizer, options, self.report)
        self.tokeniser = Tokeniser(tokenizer, options.add_eos)
        self.reward_order = RewardOrder(options.reward_names)
        self.builder = TableBuilder(options)
        self.digest = hashlib.blake2b(digest_size=16)
        self.seen: set[bytes] = set()
        self.ungrouped: list[tuple[int, int, str, int]] = []  # source, row of it, place, unit
        self.ignored: set[str] = set()
        self.any_group = False

    def read(self) -> list[np.ndarray]:
        """Returns, for each source, the units (pairs, or labelled rows) that can be trained on."""
        units = []
        with tqdm(desc="reading and tokenising", unit=" rows", disable=not self.progress) as bar:
            for index, source in enumerate(self.sources):
                first = len(self.builder)
                rows = source.read()
                while batch := list(islice(rows, BATCH)):
                    self._batch(index, batch)
                    bar.update(len(batch))
                units.append(np.arange(first, len(self.builder), dtype=np.int64))
        if self.ignored:
            self.report.note(f"fields that nothing reads: {', '.join(sorted(self.ignored))}")
        if self.report.prompts_repeated:
            self.report.note(
                f"in {self.report.prompts_repeated} rows every completion opens with the whole prompt: "
                "if it repeats the prompt, leave the field prompt out and it is found by itself"
            )
        if self.any_group and self.ungrouped:
            units = self._reject_ungrouped(units)
        for account, kept in zip(self.report.sources, units, strict=True):
            account.rows_kept = len(kept)
        return units

    def _batch(self, source: int, batch: list[Located]) -> None:
        account = self.report.sources[source]
        first = account.rows_read
        account.rows_read += len(batch)
        reasons: dict[int, str] = {}
        parsed: dict[int, tuple[Row, Rendering]] = {}
        for number, (_, raw) in enumerate(batch):
            try:
                if isinstance(raw, Broken):
                    raise RowError(raw.reason)
                row = parse_row(raw, self.options, self.sources[source].format)
                rendering = self.template.render(row)
                _check_unicode(row, rendering)
                parsed[number] = row, rendering
                self.ignored.update(row.unread)
                if row.read_as:
                    self.report.note(f"{account.name}: read as {row.read_as}")
            except RowError as error:
                reasons[number] = str(error)
        encodings = self.tokeniser.encode([rendering for _, rendering in parsed.values()])
        for (number, (row, rendering)), encoded in zip(parsed.items(), encodings, strict=True):
            try:
                truncate(encoded, self.options, self.tokeniser.bos)
                self.reward_order.apply(row.columns)
            except RowError as error:
                reasons[number] = str(error)
                continue
            if "group" in row.columns:
                self.any_group |= not row.lent_group
            else:
                self.ungrouped.append((source, first + number, batch[number][0], len(self.builder)))
            self._keep(row, rendering, encoded, batch[number][0])
        self.builder.flush()
        for number in sorted(reasons):
            self._reject(source, batch[number], reasons[number])

    def _keep(self, row: Row, rendering: Rendering, encoded: Encoded, place: str) -> None:
        key = self.builder.add(encoded, row, place)
        self.report.duplicates += key in self.seen
        self.seen.add(key)
        self.digest.update(key + repr((row.label, sorted(row.columns.items()))).encode())
        self.report.rows_truncated += encoded.cut_prompt or encoded.cut_completions > 0
        self.report.prompts_truncated += encoded.cut_prompt
        self.report.completions_truncated += encoded.cut_completions
        self.report.prompts_ending_in_space += rendering.special_tokens and rendering.prompt[-1:].isspace()
        if rendering.special_tokens:
            replies = rendering.completions.values()
            self.report.prompts_repeated += all(reply[0][0].startswith(rendering.prompt) for reply in replies)

    def _reject(self, source: int, located: Located, reason: str) -> None:
        self.report.sources[source].rows_rejected += 1
        if len(self.report.bad_rows) < SHOWN_BAD_ROWS:
            self.report.bad_rows.append(BadRow(located[0], reason))
        self.rejected.write(located, reason)

    def _reject_ungrouped(self, units: list[np.ndarray]) -> list[np.ndarray]:
        """Rows without a group among rows with one are bad, which is known only once all are read."""
        wanted = {(source, row) for source, row, _, _ in self.ungrouped}
        for index in sorted({source for source, _ in wanted}):
            for number, located in enumerate(self.sources[index].read()):
                if (index, number) in wanted:
                    self._reject(index, located, "group is missing, and other rows have one")
        dropped = [unit for _, _, _, unit in self.ungrouped]
        return [np.setdiff1d(kept, dropped, assume_unique=True) for kept in units]


def _check_unicode(row: Row, rendering: Rendering) -> None:
    """JSON can spell half a character ("\\ud83d"), which no tokenizer and no table can hold."""
    texts = [rendering.prompt, *(text for value in rendering.completions.values() for text, _ in value)]
    try:
        "".join([*texts, str(row.columns.get("group", ""))]).encode()
    except UnicodeEncodeError as error:
        raise RowError("not UTF-8: the text has half of a surrogate pair") from error


def _weigh(sources: list[Source], report: DataReport, units: list[np.ndarray], seed: int) -> np.ndarray:
    """Which units one epoch sees: every one ``floor(weight)`` times, and a random part of them once more."""
    chosen = []
    for index, (source, account, kept) in enumerate(zip(sources, report.sources, units, strict=True)):
        times, part = divmod(source.weight, 1)
        extra = np.random.default_rng([seed, index]).permutation(kept)[: round(part * len(kept))]
        used = np.concatenate([np.tile(kept, int(times)), np.sort(extra)])
        account.rows_used = len(used)
        chosen.append(used)
    return np.concatenate(chosen).astype(np.int64)


class _RejectedRows(AbstractContextManager["_RejectedRows"]):
    """The file of rejected rows: written aside, and moved into place when all rows are read."""

    def __init__(self, options: DataOptions) -> None:
        self.path = options.rejected_rows if options.on_bad_row == "skip" else None
        self.file: IO[str] | None = None

    def write(self, located: Located, reason: str) -> None:
        if self.path is None:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._aside(self.path).open("w", encoding="utf-8", errors="backslashreplace")
        place, raw = located
        row = raw.raw if isinstance(raw, Broken) else raw
        line = {"source": place, "reason": reason, "row": row}
        self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            assert self.path is not None
            self.file.close()
            os.replace(self._aside(self.path), self.path)

    @staticmethod
    def _aside(path: Path) -> Path:
        return path.with_name(path.name + ".partial")
