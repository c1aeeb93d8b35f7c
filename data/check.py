"""Statistics of preference data: lengths, length bias, repeated prompts, what truncation and steps would be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .formats import kind_of_row
from .lengths import LIST, lengths, list_lengths, list_sizes
from .near import SHOWN, Near, near_duplicates
from .options import DataOptions
from .prepare import Prepared, prepare
from .sample import sample
from .schema import DataReport, Kind
from .sources import Source, open_sources

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MAX_LENGTHS = (512, 1024, 2048, 4096, 8192)
ROWS_PER_STEP = 64
KINDS: dict[str, Kind] = {"chosen_ids": "pairs", "completion_ids": "labelled", f"{LIST}_ids": "lists"}


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

    @property
    def longer_wins(self) -> float:
        """The accuracy of a judge who prefers the longer completion, and tosses a coin over equal ones."""
        return self.longer + self.equal / 2


@dataclass(frozen=True)
class Overlap:
    """Prompts that another set has as well.

    Attributes:
        same: distinct prompts that are in both sets, character for character.
        examples: (a prompt's place, its place in the other set) of the first few.
        near: those that are nearly in the other set, the same ones left out; None where that was not looked for.
    """

    same: int
    examples: tuple[tuple[str, str], ...]
    near: Near | None


@dataclass
class Statistics:
    """What a set of preference rows is made of.

    Attributes:
        kind: "pairs", "labelled" or "lists".
        unit: what lengths are counted in: "tokens", or "bytes" where no tokenizer was given.
        report: where every row went.
        lengths: by kind of text: prompt, chosen, rejected (completion), and prompt with its longest completion.
        list_sizes: of lists, how many have so many completions.
        bias: length bias; None where there is nothing to compare.
        distinct_prompts: number of different prompts.
        groups: rows of each group.
        labels: rows of each label, for labelled rows.
        truncation: by max_length, the share of rows (prompt and longest completion) that are longer.
        tokens_per_row: mean length of a prompt and all completions to it, which is what a packed row costs.
        rows_per_step: rows of one optimiser step, as the caller said.
        steps_per_epoch: steps that go through all rows once, after a mixture's weights; the last may be a part.
        near: prompts that nearly repeat an earlier one; None where that was not looked for.
        near_asked: whether it should have been.
        overlap: prompts that another set has, where one was given.
        sampled_of: rows of the sources, where only a sample of them was looked at.
    """

    kind: Kind
    unit: Literal["tokens", "bytes"]
    report: DataReport
    lengths: dict[str, Lengths]
    bias: LengthBias | None
    distinct_prompts: int
    groups: dict[str, int] = field(default_factory=dict)
    labels: dict[bool, int] = field(default_factory=dict)
    list_sizes: dict[int, int] = field(default_factory=dict)
    truncation: dict[int, float] = field(default_factory=dict)
    tokens_per_row: float = 0.0
    rows_per_step: int = ROWS_PER_STEP
    steps_per_epoch: int = 0
    near: Near | None = None
    near_asked: bool = False
    overlap: Overlap | None = None
    sampled_of: int | None = None


@dataclass(frozen=True)
class CheckOptions:
    """What a look at data is told.

    Attributes:
        rows: look at a sample of so many rows, drawn evenly over all sources; None looks at all.
        against: another set (of evaluation, say) whose prompts must not be here.
        near: also look for prompts that are nearly the same.
        rows_per_step: rows of one optimiser step.
    """

    rows: int | None = None
    against: Any = None
    near: bool = False
    rows_per_step: int = ROWS_PER_STEP

    def __post_init__(self) -> None:
        for name in ("rows", "rows_per_step"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, found {number}")


def check(
    source: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: DataOptions | None = None,
    progress: bool = True,
    asked: CheckOptions | None = None,
) -> Statistics:
    """Reads rows as training would and counts what is there; bad rows are counted and named, never fatal.

    Args:
        source: as for ``prepare``.
        tokenizer: lengths are counted in its tokens, or in UTF-8 bytes when None (any chat template is then left out).
        options: what training would be told. Without them the kind is that of the first row and nothing is truncated.
        progress: whether to show a progress bar.
        asked: what else to look for.

    Raises:
        ValueError: a source cannot be read, or no good row is left.
    """
    asked = asked or CheckOptions()
    unit: Literal["tokens", "bytes"] = "tokens" if tokenizer is not None else "bytes"
    sources, sampled_of = open_sources(source), None
    if asked.rows is not None:
        sources, sampled_of = sample(sources, asked.rows)
    prepared, tokenizer = _prepared(sources, tokenizer, options, progress)
    found = statistics(prepared, unit)
    found.sampled_of, found.rows_per_step, found.near_asked = sampled_of, asked.rows_per_step, asked.near
    found.steps_per_epoch = math.ceil(len(prepared.dataset) / asked.rows_per_step)
    if asked.near or asked.against is not None:
        prompts = _prompts(prepared, tokenizer)
        found.near = near_duplicates(prompts) if asked.near else None
        if asked.against is not None:
            other, _ = _prepared(open_sources(asked.against), tokenizer, options, progress)
            found.overlap = _overlap(prompts, _prompts(other, tokenizer), asked.near)
    return found


def _prepared(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase | None, options: DataOptions | None, progress: bool
) -> tuple[Prepared, PreTrainedTokenizerBase]:
    options = options or DataOptions(kind=kind_of(sources), max_length=None)
    options = replace(options, on_bad_row="skip", mismatched=False, add_eos=options.add_eos and tokenizer is not None)
    tokenizer = tokenizer or byte_tokenizer()
    return prepare(sources, tokenizer, options, progress=progress), tokenizer


def _prompts(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """The place and the text of each distinct prompt, of the row that has it first."""
    table: pa.Table = prepared.dataset.data.table
    first: dict[bytes, tuple[str, np.ndarray]] = {}
    for place, ids in zip(table["source"].to_pylist(), _arrays(table["prompt_ids"]), strict=True):
        first.setdefault(ids.tobytes(), (place, ids))
    texts = tokenizer.batch_decode([ids.tolist() for _, ids in first.values()])
    return [(place, text) for (place, _), text in zip(first.values(), texts, strict=True)]


def _overlap(prompts: list[tuple[str, str]], others: list[tuple[str, str]], near: bool) -> Overlap:
    places = {text: place for place, text in others}
    same = [(place, places[text]) for place, text in prompts if text in places]
    rest = [(place, text) for place, text in prompts if text not in places]
    return Overlap(len(same), tuple(same[:SHOWN]), near_duplicates(rest, others) if near else None)


def statistics(prepared: Prepared, unit: Literal["tokens", "bytes"] = "tokens") -> Statistics:
    """Counts what is in rows that are prepared already."""
    table: pa.Table = prepared.dataset.data.table
    kind: Kind = next(kind for field, kind in KINDS.items() if field in table.column_names)
    sizes = list_sizes(prepared.dataset) if kind == "lists" else None
    counts = _counts(prepared, kind)
    whole = counts["prompt"] + _longest(counts, sizes)
    described = {name: _lengths(values) for name, values in counts.items()}
    described["prompt + completion" if kind == "labelled" else "prompt + longest completion"] = _lengths(whole)
    return Statistics(
        kind=kind,
        unit=unit,
        report=prepared.report,
        lengths=described,
        bias=_bias(table, counts, sizes),
        distinct_prompts=len({np.asarray(ids).tobytes() for ids in _arrays(table["prompt_ids"])}),
        groups=dict(sorted(Counter(table["group"].to_pylist()).items())) if "group" in table.column_names else {},
        labels=dict(Counter(table["label"].to_pylist())) if kind == "labelled" else {},
        list_sizes={} if sizes is None else dict(sorted(Counter(sizes.tolist()).items())),
        truncation={length: float(np.mean(whole > length)) for length in MAX_LENGTHS},
        tokens_per_row=float(sum(values.sum() for values in counts.values()) / table.num_rows),
        steps_per_epoch=math.ceil(table.num_rows / ROWS_PER_STEP),
    )


def _counts(prepared: Prepared, kind: Kind) -> dict[str, np.ndarray]:
    """Returns the lengths of each kind of text; of lists those of all completions, one after the other."""
    counts = {"prompt": lengths(prepared.dataset, "prompt")}
    if kind == "lists":
        return counts | {"completion": list_lengths(prepared.dataset)}
    names = ["chosen", "rejected"] if kind == "pairs" else ["completion"]
    return counts | {name: lengths(prepared.dataset, name) for name in names}


def _longest(counts: dict[str, np.ndarray], sizes: np.ndarray | None) -> np.ndarray:
    """Returns the tokens of each row's longest completion."""
    longest: np.ndarray
    if sizes is not None:
        longest = np.maximum.reduceat(counts["completion"], np.cumsum(sizes) - sizes)
    else:
        longest = np.maximum.reduce([values for name, values in counts.items() if name != "prompt"])
    return longest


def _bias(table: pa.Table, counts: dict[str, np.ndarray], sizes: np.ndarray | None) -> LengthBias | None:
    if "chosen" in counts:
        return _pair_bias(counts["chosen"], counts["rejected"])
    if sizes is None:
        return _label_bias(table, counts["completion"])
    scores = np.concatenate([chunk.values.to_numpy() for chunk in table["scores"].chunks])
    starts, better, worse = np.cumsum(sizes) - sizes, [], []
    for size in np.unique(sizes):  # lists of one size make a matrix
        places = starts[sizes == size][:, None] + np.arange(size)
        rows, one, other = np.nonzero(scores[places][:, :, None] > scores[places][:, None, :])
        better.append(counts["completion"][places[rows, one]])
        worse.append(counts["completion"][places[rows, other]])
    return _pair_bias(np.concatenate(better), np.concatenate(worse))


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


def kind_of(sources: list[Source]) -> Kind:
    """Whether rows are pairs, labelled or lists, by the first of them that says."""
    for opened in sources:
        for _, row in opened.read():
            if isinstance(row, dict) and (kind := kind_of_row(row, opened.format)) is not None:
                return kind
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
