"""The account of every row, kept in the order of the rows while chunks of them come in."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from contextlib import AbstractContextManager
from typing import IO, Any

import numpy as np

from .chunks import Located
from .columns import RewardOrder
from .encode import Outcome, Unit
from .keys import KEY_DTYPE
from .options import DataOptions
from .schema import SHOWN_BAD_ROWS, BadRow, Broken, DataReport, RowError, SourceReport
from .sources import Source


class Account:
    """Takes in what became of each chunk, in order, and says of every row where it went.

    Memory: about 40 bytes a row.
    """

    def __init__(self, sources: list[Source], options: DataOptions, rejected: RejectedRows) -> None:
        self.sources, self.rejected = sources, rejected
        self.report = DataReport(sources=[SourceReport(str(source), float(source.weight)) for source in sources])
        self.reward_order = RewardOrder(options.reward_names)
        self.lists_as = f"lists_as: {options.lists_as}" if options.kind != "lists" else ""
        if options.max_completions is not None:
            self.lists_as += f"{', ' * bool(self.lists_as)}max_completions: {options.max_completions}"
        self.ignored: set[str] = set()
        self.digest = hashlib.blake2b(digest_size=16)
        self.any_group = False
        self._keys = bytearray()
        self._row, self._source = array("q"), array("i")  # of each unit: which row of which source
        self._ungrouped = array("q")

    @property
    def units(self) -> int:
        """Good rows so far."""
        return len(self._row)

    def take(self, source: int, outcome: Outcome) -> list[Unit]:
        """Counts a chunk; returns the units of it that stay, whose rewards are in one order now."""
        report, account = self.report, self.report.sources[source]
        first, bad, kept = account.rows_read, list(outcome.bad), []
        account.rows_read += outcome.rows
        for note in outcome.notes:
            report.note(note)
        self.ignored |= outcome.ignored
        for unit in outcome.units:
            try:
                self.reward_order.apply(unit.columns)
            except RowError as error:
                bad.append((unit.number, (unit.place, unit.raw), str(error)))
                continue
            self._keep(unit, source, first + unit.number)
            kept.append(unit)
        for _, located, reason in sorted(bad, key=lambda one: one[0]):
            self.reject(source, located, reason)
        return kept

    def _keep(self, unit: Unit, source: int, row: int) -> None:
        report = self.report
        if "group" in unit.columns:
            self.any_group |= not unit.lent_group
        else:
            self._ungrouped.append(self.units)
        self._row.append(row)
        self._source.append(source)
        self._keys += unit.key
        self.digest.update(unit.key + repr((unit.label, sorted(unit.columns.items()))).encode())
        report.rows_truncated += unit.cut_prompt or unit.cut_completions > 0
        report.prompts_truncated += unit.cut_prompt
        report.completions_truncated += unit.cut_completions
        report.prompts_ending_in_space += unit.ends_in_space
        report.prompts_repeated += unit.repeats_prompt
        report.completions_repeated += unit.repeated
        report.completions_left_out += unit.left_out
        report.completions_tied += unit.tied
        report.control_tokens_split += unit.spelled == "split"
        report.control_tokens_kept += unit.spelled == "kept"

    def reject(self, source: int, located: Located, reason: str) -> None:
        """Counts a bad row, and writes it aside."""
        self.report.sources[source].rows_rejected += 1
        if len(self.report.bad_rows) < SHOWN_BAD_ROWS:
            self.report.bad_rows.append(BadRow(located[0], reason))
        self.rejected.write(located, reason)

    def close(self) -> list[np.ndarray[Any, Any]]:
        """Says what only all rows tell; returns, for each source, the units that can be trained on."""
        report, sources = self.report, np.frombuffer(self._source, np.int32)
        report.duplicates = self.units - len(np.unique(np.frombuffer(self._keys, KEY_DTYPE)))
        if self.ignored:
            report.note(f"fields that nothing reads: {', '.join(sorted(self.ignored))}")
        if report.prompts_repeated:
            report.note(
                f"in {report.prompts_repeated} rows every completion opens with the whole prompt: "
                "if it repeats the prompt, leave the field prompt out and it is found by itself"
            )
        if report.completions_repeated:
            report.note(
                f"{report.completions_repeated} completions equal another of their list: equal ones are one, with the "
                "mean of their scores"
            )
        if report.completions_left_out:
            report.note(f"{report.completions_left_out} completions of lists are not used ({self.lists_as})")
        if report.completions_tied:
            report.note(
                f"{report.completions_tied} completions have scores that float32 does not tell from another's of their "
                "list: they are tied"
            )
        if report.control_tokens_split:
            report.note(f"{report.control_tokens_split} rows spell control tokens in their text, where they stay text")
        if report.control_tokens_kept:
            report.note(
                f"{report.control_tokens_kept} rows spell control tokens in their text, which the model sees as such; "
                "special_tokens_in_text: split reads them as text"
            )
        good = np.ones(self.units, np.bool_)
        if self.any_group and self._ungrouped:
            good[self._ungrouped] = False
            self._reject_ungrouped()
        units = [np.flatnonzero((sources == index) & good) for index in range(len(self.sources))]
        for account, kept in zip(report.sources, units, strict=True):
            account.rows_kept = len(kept)
        report.reward_names = self.reward_order.names
        return units

    def _reject_ungrouped(self) -> None:
        """Rows without a group among rows with one are bad, which is known only once all are read."""
        wanted = {(self._source[unit], self._row[unit]) for unit in self._ungrouped}
        for index in sorted({source for source, _ in wanted}):
            for number, located in enumerate(self.sources[index].read()):
                if (index, number) in wanted:
                    self.reject(index, located, "group is missing, and other rows have one")


class RejectedRows(AbstractContextManager["RejectedRows"]):
    """The file of rejected rows: written aside, and moved into place when all rows are read; of none there is none."""

    def __init__(self, options: DataOptions) -> None:
        self.former = options.rejected_rows
        self.path = options.rejected_rows if options.on_bad_row == "skip" else None
        self.file: IO[str] | None = None

    def write(self, located: Located, reason: str) -> None:
        if self.path is None:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_name(self.path.name + ".partial")
            self.file = aside.open("w", encoding="utf-8", errors="backslashreplace")
        place, raw = located
        row = raw.raw if isinstance(raw, Broken) else raw
        line = {"source": place, "reason": reason, "row": row}
        self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def __exit__(self, kind: object, *_: object) -> None:
        if self.file is not None:
            assert self.path is not None
            self.file.close()
            os.replace(self.file.name, self.path)
        elif kind is None and self.former is not None:  # those of another run in the folder are not of this one
            self.former.unlink(missing_ok=True)
