"""Rows of token ids and their cached scores to one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from .columns import NUMBERS
from .keys import content_key
from .layout import PROMPT, Layout, Mode, ScoredSequence, layout_fields
from .lengths import LIST
from .parcel import Parcel


class ScoreReader(Protocol):
    """Reads per-token scores of a frozen model by content key."""

    def get(self, keys: Sequence[bytes]) -> Sequence[np.ndarray]:
        """Returns one float32 array, as long as the completion, for each key."""


@dataclass(frozen=True)
class CachedScores:
    """What the cache holds of completions.

    Attributes:
        readers: per-token scores by scorer name ("reference", ...).
        hidden: final hidden states of the reference, where the loss measures whole distributions.
    """

    readers: Mapping[str, ScoreReader]
    hidden: ScoreReader | None = None


class Rows:
    """A dataset as the sampler indexes it: rows know their index, and whether they only fill a batch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        real = index >= 0
        row = index if real else ~index
        return {**self.dataset[row], "row": row, "real": real}


Fields = Mapping[str, Sequence[ScoredSequence | None]]


def sequence(row: Mapping[str, Any], field: str, place: int | None = None) -> ScoredSequence:
    """Returns the prompt of ``row`` with its completion ``field`` ("chosen", ...), or with one of "completions"."""
    ids, mask = row[f"{field}_ids"], row[f"{field}_mask"]
    if place is not None:
        ids, mask = ids[place], mask[place]
    return ScoredSequence(
        np.asarray(row["prompt_ids"], dtype=np.int64), np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=bool)
    )


def better_sequence(row: Mapping[str, Any]) -> ScoredSequence:
    """Returns the prompt of ``row`` with its better completion: chosen, the only one, or the best of a list."""
    if f"{LIST}_ids" in row:
        return sequence(row, LIST, int(np.argmax(row["scores"])))
    return sequence(row, "chosen" if "chosen_ids" in row else "completion")


def sequences_of(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Fields:
    """Returns the completions of rows by field, as ``layout_fields`` takes them.

    The field "completions" of lists becomes K fields, where the longest has K completions; shorter ones have holes.
    """
    if LIST not in fields:
        return {field: [sequence(row, field) for row in rows] for field in fields}
    sizes = [len(row[f"{LIST}_ids"]) for row in rows]
    return {
        f"{LIST}[{k}]": [sequence(row, LIST, k) if k < size else None for row, size in zip(rows, sizes, strict=True)]
        for k in range(max(sizes))
    }


def sequence_key(s: ScoredSequence) -> bytes:
    """Returns the content key of a sequence, under which the score cache keeps it."""
    return content_key(s.prompt, s.completion, s.mask)


class PreferenceCollator:
    """Makes a batch of rows of a tokenised dataset.

    Args:
        fields: the completions to score with gradient: ("chosen", "rejected"), ("completion",) or ("completions",),
            those of a list.
        pad_id: token id that pads rows; never attended to.
        mismatched: whether rows carry a mismatched completion, laid out apart because it never has a gradient.
        score_prompt: whether the prompt's tokens are scored too.
        rewards: whether rows carry explicit rewards.
        groups: index of each group's name.
        cached: what the cache holds of the completions.
        mode: how rows are laid out.

    The batch is a dict that moves to a device in one copy (``Parcel``): ``completions`` and ``mismatched`` (layouts),
    ``scores`` and ``mismatched_scores`` (scorer -> ``[F, N, T]`` float32), ``columns`` (name -> ``[N]`` float32;
    "group" int64, "label" bool, "pair" int64, "scores" ``[N, K]`` of lists, NaN at holes, "rewards" ``[F, N, R]`` of
    all fields but "gold", NaN at holes), and
    ``reference_hidden`` ``[M, D]`` float32 in the order of the layout's needed positions. Two numpy arrays stay on the
    host, where they are read: ``row`` ``[N]`` int64 and ``real`` ``[N]`` bool, False for fillers. Where
    ``keeps_sequences`` is set, so do the completions that were laid out, as ``sequences``.
    """

    keeps_sequences = False

    def __init__(
        self,
        fields: Sequence[str],
        pad_id: int,
        *,
        mismatched: bool = False,
        score_prompt: bool = False,
        rewards: bool = False,
        groups: Sequence[str] = (),
        cached: CachedScores | None = None,
        mode: Mode = "padded",
    ) -> None:
        self.cached, self.mode = cached or CachedScores({}), mode
        self.fields, self.pad_id = tuple(fields), pad_id
        self.mismatched, self.score_prompt, self.rewards = mismatched, score_prompt, rewards
        self.groups = {name: index for index, name in enumerate(groups)}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Parcel:
        sequences = sequences_of(rows, self.fields)
        layout = layout_fields(sequences, self.pad_id, self.mode, score_prompt=self.score_prompt)
        batch: dict[str, Any] = {
            "completions": layout,
            "scores": self._scores(sequences, layout),
            "columns": self._columns(rows),
            "row": np.array([row["row"] for row in rows], dtype=np.int64),
            "real": np.array([row["real"] for row in rows], dtype=bool),
        }
        if self.keeps_sequences:
            batch["sequences"] = sequences
        if self.cached.hidden is not None:
            batch["reference_hidden"] = read_hidden(self.cached.hidden, sequences, layout)
        if self.mismatched:
            others = {"mismatched": [sequence(row, "mismatched") for row in rows]}
            batch["mismatched"] = layout_fields(others, self.pad_id, self.mode)
            batch["mismatched_scores"] = self._scores(others, batch["mismatched"])
        return Parcel.of(batch)

    def _scores(self, sequences: Fields, layout: Layout) -> dict[str, torch.Tensor]:
        return {name: read_scores(reader, sequences, layout) for name, reader in self.cached.readers.items()}

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        first = rows[0]
        columns = {name: torch.tensor([float(row[name]) for row in rows]) for name in NUMBERS if name in first}
        if "group" in first and self.groups:
            columns["group"] = torch.tensor([self.groups.get(str(row["group"]), -1) for row in rows])
        if "label" in first:
            columns["label"] = torch.tensor([bool(row["label"]) for row in rows])
            columns["pair"] = torch.tensor([int(row.get("pair", -1)) for row in rows])
        if LIST in self.fields:
            columns["scores"] = _padded([row["scores"] for row in rows])
        if self.rewards and LIST in self.fields:
            columns["rewards"] = _padded([row["rewards"] for row in rows]).transpose(0, 1).contiguous()
        elif self.rewards:
            carrying = [field for field in self.fields if field != "gold"]  # they come first
            names = ["rewards" if field == "completion" else f"rewards_{field}" for field in carrying]
            columns["rewards"] = torch.tensor(np.array([[row[name] for row in rows] for name in names])).float()
        return columns


def _padded(lists: Sequence[Sequence[Any]]) -> torch.Tensor:
    """Returns the numbers of lists ``[N, K, ...]`` float32, NaN where a list has fewer than K."""
    tensors = [torch.from_numpy(np.array([np.asarray(one, dtype=np.float32) for one in numbers])) for numbers in lists]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=float("nan"))


def read_scores(reader: ScoreReader, sequences: Fields, layout: Layout) -> torch.Tensor:
    """Returns the cached scores of every completion, laid out ``[F, N, T]`` float32 as ``layout["mask"]`` is."""
    scores = torch.zeros(layout["mask"].shape, dtype=torch.float32)
    for f, field in enumerate(layout["fields"]):
        if field == PROMPT:
            continue
        present = {n: sequence_key(s) for n, s in enumerate(sequences[field]) if s is not None}
        for n, value in zip(present, reader.get(list(present.values())), strict=True):
            scores[f, n, : len(value)] = torch.from_numpy(np.array(value, dtype=np.float32))
    return scores


def read_hidden(reader: ScoreReader, sequences: Fields, layout: Layout) -> torch.Tensor:
    """Returns cached hidden states ``[M, D]`` float32, one for each needed position of a layout, in its order."""
    every = [s for field in layout["fields"] if field != PROMPT for s in sequences[field]]
    present = {index: sequence_key(s) for index, s in enumerate(every) if s is not None}
    values = reader.get(list(present.values()))
    depth = layout["mask"].shape[-1]
    slots = layout["slot"].numpy()
    owners, tokens = slots // depth, slots % depth
    hidden = np.zeros((len(slots), values[0].shape[-1]), dtype=np.float32)
    for index, value in zip(present, values, strict=True):
        mine = owners == index
        hidden[mine] = np.asarray(value, dtype=np.float32)[tokens[mine]]
    return torch.from_numpy(hidden)
