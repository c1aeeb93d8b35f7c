"""Rows from anywhere to one Arrow file of token ids that is mapped into memory, with an account of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .account import Account, RejectedRows
from .chunks import Chunk
from .encode import Encoder
from .options import DataOptions
from .rows_file import Draft, open_rows
from .schema import DataReport
from .sources import Source, open_sources
from .workers import in_order

BATCH = 1000  # rows that a worker takes at once; results do not depend on it
ROWS = "rows.arrow"


@dataclass
class Prepared:
    """Rows ready for the collator.

    Attributes:
        dataset: Arrow-backed columns. Pairs: ``prompt_ids``, ``chosen_ids``, ``chosen_mask``, ``rejected_ids``,
            ``rejected_mask`` and perhaps ``gold_ids``, ``gold_mask``. Labelled: ``prompt_ids``, ``completion_ids``,
            ``completion_mask``, ``label``, ``pair`` and perhaps ``mismatched_ids``, ``mismatched_mask``. Lists:
            ``prompt_ids``, ``completions_ids`` and ``completions_mask`` (lists of lists) and ``scores`` (float64). Ids
            are int32, masks bool (True where the token counts in the loss). All: ``source``, ``prompt_key`` and for
            each completion its content key (``chosen_key``, ...; 16 bytes, those of a list joined), and what rows have
            of ``group``, ``weight``, ``margin``, ``score_chosen``, ``score_rejected`` and rewards (lists of float64).
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
    workers: int = 1,
    folder: Path | None = None,
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
        workers: processes that share the work; the result is the same, byte for byte, for any number.
        folder: where ``rows.arrow`` is written and then mapped; None keeps the rows in memory.

    Raises:
        ValueError: bad rows (naming the first twenty and counting all) unless they are skipped; no row left; a source
            that cannot be read.
    """
    options = options or DataOptions()
    with TemporaryDirectory() as scratch:
        target = folder or Path(scratch)
        report = _write(open_sources(source), tokenizer, options, seed, target, progress, workers)
        return Prepared(open_rows(target / ROWS, report.fingerprint, in_memory=folder is None), report)


def _write(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    seed: int,
    folder: Path,
    progress: bool,
    workers: int,
) -> DataReport:
    """Writes ``rows.arrow`` into a folder; returns where every row went."""
    draft = Draft(folder / "draft.arrow", options)
    with RejectedRows(options) as rejected, draft:
        account = Account(sources, options, rejected)
        _read(account, draft, Encoder(tokenizer, options), progress, workers)
        units, report = account.close(), account.report
        if report.rows_rejected and options.on_bad_row == "error":
            raise ValueError(report.bad_rows_text() + '\non_bad_row="skip" trains on the others and writes these aside')
        if not report.rows_read:
            raise ValueError(f"no row to train on: {', '.join(map(str, sources))} holds none")
        if not report.rows_kept:
            raise ValueError(f"no row is left to train on: {report.bad_rows_text()}")
    assert report.rows_read == report.rows_kept + report.rows_rejected, "a row disappeared"
    chosen = _weigh(sources, report, units, seed)
    if not len(chosen):
        weights = ", ".join(f"{one.name}: {one.weight:g} of {one.rows_kept} rows" for one in report.sources)
        raise ValueError(f"the weights of the mixture leave no row to train on ({weights}); raise one")
    draft.finish(chosen, report, folder / ROWS)
    draft.path.unlink()
    report.fingerprint = hashlib.blake2b(account.digest.digest() + chosen.tobytes(), digest_size=16).hexdigest()
    return report


def _read(account: Account, draft: Draft, encoder: Encoder, progress: bool, workers: int) -> None:
    """Goes through all sources once, chunk by chunk."""
    origins: list[int] = []

    def chunks() -> Iterator[Chunk]:
        for index, source in enumerate(account.sources):
            for chunk in source.chunks(BATCH):
                origins.append(index)
                yield chunk

    with tqdm(desc="reading and tokenising", unit=" rows", leave=False, disable=None if progress else True) as bar:
        for number, outcome in enumerate(in_order(encoder, chunks(), workers)):
            draft.add(outcome, account.take(origins[number], outcome))
            bar.update(outcome.rows)


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
