"""Statistics of preference data, and the table that shows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .formats import holds_pair
from .options import DataOptions
from .prepare import Prepared, prepare
from .schema import DataReport
from .sources import open_sources

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Lengths of one kind of text.

    Attributes:
        quantiles: at 0, 5, 50, 95 and 100 %, each the length of a real text.
        mean: the mean length.
    """

    quantiles: tuple[int, ...]
    mean: float


@dataclass(frozen=True)
class LengthBias:
    """Whether the preferred completions are the longer ones, which a model learns before anything else.

    Attributes:
        longer, equal, shorter: shares of the pairs in which chosen is longer than, as long as, shorter than rejected.
        difference: mean length of chosen minus mean length of rejected (of desirable minus undesirable rows).
    """

    longer: float
    equal: float
    shorter: float
    difference: float


@dataclass
class Statistics:
    """What a set of preference rows is made of.

    Attributes:
        kind: "pairs" or "labelled".
        unit: what lengths are counted in: "tokens", or "bytes" where no tokenizer was given.
        report: where every row went.
        lengths: by kind of text: prompt, chosen, rejected (completion), and prompt with its longest completion.
        bias: length bias; None where there is nothing to compare.
        distinct_prompts: number of different prompts.
        groups: rows of each group.
        labels: rows of each label, for labelled rows.
    """

    kind: Literal["pairs", "labelled"]
    unit: Literal["tokens", "bytes"]
    report: DataReport
    lengths: dict[str, Lengths]
    bias: LengthBias | None
    distinct_prompts: int
    groups: dict[str, int] = field(default_factory=dict)
    labels: dict[bool, int] = field(default_factory=dict)


def check(
    source: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: DataOptions | None = None,
    progress: bool = True,
) -> Statistics:
    """Reads all rows as training would and counts what is there; bad rows are counted and named, never fatal.

    Args:
        source: as for ``prepare``.
        tokenizer: lengths are counted in its tokens, or in UTF-8 bytes when None (any chat template is then left out).
        options: what training would be told. Without them the kind is that of the first row and nothing is truncated.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a source cannot be read, or no good row is left.
    """
    unit: Literal["tokens", "bytes"] = "tokens" if tokenizer is not None else "bytes"
    if options is None:
        options = DataOptions(kind=_kind(source), max_length=None)
    options = replace(options, on_bad_row="skip", mismatched=False, add_eos=options.add_eos and tokenizer is not None)
    prepared = prepare(source, tokenizer or byte_tokenizer(), options, progress=progress)
    return statistics(prepared, unit)


def statistics(prepared: Prepared, unit: Literal["tokens", "bytes"] = "tokens") -> Statistics:
    """Counts what is in rows that are prepared already."""
    table: pa.Table = prepared.dataset.data.table
    pairs = "chosen_ids" in table.column_names
    names = ["chosen", "rejected"] if pairs else ["completion"]
    counts = {name: pc.list_value_length(table[f"{name}_ids"]).to_numpy() for name in ("prompt", *names)}
    whole = counts["prompt"] + np.maximum.reduce([counts[name] for name in names])
    lengths = {name: _lengths(values) for name, values in counts.items()}
    lengths["prompt + longest completion" if pairs else "prompt + completion"] = _lengths(whole)
    labels = {} if pairs else dict(Counter(table["label"].to_pylist()))
    return Statistics(
        kind="pairs" if pairs else "labelled",
        unit=unit,
        report=prepared.report,
        lengths=lengths,
        bias=_pair_bias(counts["chosen"], counts["rejected"]) if pairs else _label_bias(table, counts["completion"]),
        distinct_prompts=len({np.asarray(ids).tobytes() for ids in _arrays(table["prompt_ids"])}),
        groups=dict(sorted(Counter(table["group"].to_pylist()).items())) if "group" in table.column_names else {},
        labels=labels,
    )


def _arrays(column: pa.ChunkedArray) -> Any:
    return (ids for chunk in column.chunks for ids in chunk.to_numpy(zero_copy_only=False))


def _lengths(values: np.ndarray) -> Lengths:
    quantiles = np.quantile(values, QUANTILES, method="inverted_cdf")
    return Lengths(tuple(int(value) for value in quantiles), float(values.mean()))


def _pair_bias(chosen: np.ndarray, rejected: np.ndarray) -> LengthBias:
    difference = chosen.astype(np.int64) - rejected
    longer, equal, shorter = (float(np.mean(sign)) for sign in (difference > 0, difference == 0, difference < 0))
    return LengthBias(longer, equal, shorter, float(difference.mean()))


def _label_bias(table: pa.Table, lengths: np.ndarray) -> LengthBias | None:
    desirable = table["label"].to_numpy()
    if desirable.all() or not desirable.any():
        return None
    # Rows have no partner here: compare every desirable row with every undesirable one.
    ordered = np.sort(lengths[~desirable])
    below = np.searchsorted(ordered, lengths[desirable], "left").mean() / len(ordered)
    up_to = np.searchsorted(ordered, lengths[desirable], "right").mean() / len(ordered)
    difference = lengths[desirable].mean() - lengths[~desirable].mean()
    return LengthBias(float(below), float(up_to - below), float(1 - up_to), float(difference))


def _kind(source: Any) -> Literal["pairs", "labelled"]:
    for opened in open_sources(source):
        for _, row in opened.read():
            if isinstance(row, dict) and (pair := holds_pair(row, opened.format)) is not None:
                return "pairs" if pair else "labelled"
    return "pairs"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of the 256 bytes, whose chat template writes little more than the messages."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=10**9)
    made.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}"
        "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return made


def render(found: Statistics) -> Group:
    """Lays the statistics out as tables for the terminal."""
    parts: list[Table | Text] = [_rows_table(found), _lengths_table(found)]
    if found.bias is not None:
        parts.append(Text(_bias_sentence(found.kind, found.unit, found.bias)))
    if found.groups:
        parts.append(_groups_table(found))
    if found.report.bad_rows:
        parts.append(_bad_rows_table(found.report))
    return Group(*parts, *map(Text, found.report.notes))


def _rows_table(found: Statistics) -> Table:
    report = found.report
    table = Table(title=f"Rows ({found.kind})")
    for column in ("source", "weight", "read", "kept", "rejected", "per epoch"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for item in report.sources:
        counts = (item.rows_read, item.rows_kept, item.rows_rejected, item.rows_used)
        table.add_row(Text(item.name), f"{item.weight:g}", *map(str, counts))
    table.add_section()
    facts = {
        "repeat an earlier row": report.duplicates,
        "distinct prompts": found.distinct_prompts,
        "truncated": report.rows_truncated,
        "prompts ending in whitespace": report.prompts_ending_in_space,
        **{f"labelled {str(label).lower()}": number for label, number in sorted(found.labels.items())},
    }
    for name, number in facts.items():
        table.add_row(name, "", "", str(number), "", "")
    return table


def _lengths_table(found: Statistics) -> Table:
    table = Table(title=f"Lengths in {found.unit}")
    table.add_column("text")
    for column in ("min", "5 %", "median", "95 %", "max", "mean"):
        table.add_column(column, justify="right")
    for name, item in found.lengths.items():
        table.add_row(name, *map(str, item.quantiles), f"{item.mean:.1f}")
    return table


def _bias_sentence(kind: str, unit: str, bias: LengthBias) -> str:
    better, worse = ("chosen", "rejected") if kind == "pairs" else ("desirable", "undesirable")
    return (
        f"{better} is longer than {worse} in {bias.longer:.1%}, equal in {bias.equal:.1%}, "
        f"shorter in {bias.shorter:.1%}; mean difference {bias.difference:+.1f} {unit}"
    )


def _groups_table(found: Statistics) -> Table:
    table = Table(title="Groups")
    table.add_column("group")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    total = sum(found.groups.values())
    for name, number in found.groups.items():
        table.add_row(Text(name), str(number), f"{number / total:.1%}")
    return table


def _bad_rows_table(report: DataReport) -> Table:
    more = report.rows_rejected - len(report.bad_rows)
    table = Table(title=f"Bad rows ({report.rows_rejected})", caption=f"... and {more} more" if more else None)
    table.add_column("row", overflow="fold")
    table.add_column("reason", overflow="fold")
    for row in report.bad_rows:
        table.add_row(Text(row.source), Text(row.reason))  # their brackets are no markup
    return table
