"""Rows of token ids and their cached scores to one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as compute
import torch

from .columns import NUMBERS
from .keys import content_key
from .layout import PROMPT, Layout, Mode, ScoredSequence, layout_fields
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


def sequence(row: Mapping[str, Any], field: str) -> ScoredSequence:
    """Returns the prompt of ``row`` with its completion ``field`` ("chosen", "completion", ...)."""
    return ScoredSequence(
        np.asarray(row["prompt_ids"], dtype=np.int64),
        np.asarray(row[f"{field}_ids"], dtype=np.int64),
        np.asarray(row[f"{field}_mask"], dtype=bool),
    )


def row_tokens(dataset: Any, fields: Sequence[str]) -> np.ndarray[Any, Any]:
    """Returns how many tokens each row puts through the model, ``[N]`` int64: its prompt once and its completions."""
    return sum((lengths(dataset, field) for field in fields), start=lengths(dataset, "prompt"))


def lengths(dataset: Any, field: str) -> np.ndarray[Any, Any]:
    """Returns how many tokens each row has of ``field`` ("prompt" or a completion), ``[N]`` int64."""
    tables = dataset.select_columns([f"{field}_ids"]).with_format("arrow").iter(batch_size=10_000)
    parts = [compute.list_value_length(table[f"{field}_ids"]).to_numpy() for table in tables]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def sequence_key(s: ScoredSequence) -> bytes:
    """Returns the content key of a sequence, under which the score cache keeps it."""
    return content_key(s.prompt, s.completion, s.mask)


class PreferenceCollator:
    """Makes a batch of rows of a tokenised dataset.

    Args:
        fields: the completions to score with gradient, e.g. ("chosen", "rejected") or ("completion",).
        pad_id: token id that pads rows; never attended to.
        mismatched: whether rows carry a mismatched completion, laid out apart because it never has a gradient.
        score_prompt: whether the prompt's tokens are scored too.
        rewards: whether rows carry explicit rewards.
        groups: index of each group's name.
        cached: what the cache holds of the completions.
        mode: how rows are laid out.

    The batch is a dict that moves to a device in one copy (``Parcel``): ``completions`` and ``mismatched`` (layouts),
    ``scores`` and ``mismatched_scores`` (scorer -> ``[F, N, T]`` float32), ``columns`` (name -> ``[N]`` float32;
    "group" int64, "label" bool, "pair" int64, "rewards" ``[F, N, K-1]`` of all fields but "gold"), and
    ``reference_hidden`` ``[M, D]`` float32 in the order of the layout's needed positions. Two numpy arrays stay on the
    host, where they are read: ``row`` ``[N]`` int64 and ``real`` ``[N]`` bool, False for fillers.
    """

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
        sequences = {field: [sequence(row, field) for row in rows] for field in self.fields}
        layout = layout_fields(sequences, self.pad_id, self.mode, score_prompt=self.score_prompt)
        batch: dict[str, Any] = {
            "completions": layout,
            "scores": self._scores(sequences, layout),
            "columns": self._columns(rows),
            "row": np.array([row["row"] for row in rows], dtype=np.int64),
            "real": np.array([row["real"] for row in rows], dtype=bool),
        }
        if self.cached.hidden is not None:
            batch["reference_hidden"] = read_hidden(self.cached.hidden, sequences, layout)
        if self.mismatched:
            others = {"mismatched": [sequence(row, "mismatched") for row in rows]}
            batch["mismatched"] = layout_fields(others, self.pad_id, self.mode)
            batch["mismatched_scores"] = self._scores(others, batch["mismatched"])
        return Parcel.of(batch)

    def _scores(self, sequences: Mapping[str, Sequence[ScoredSequence]], layout: Layout) -> dict[str, torch.Tensor]:
        return {name: read_scores(reader, sequences, layout) for name, reader in self.cached.readers.items()}

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        first = rows[0]
        columns = {name: torch.tensor([float(row[name]) for row in rows]) for name in NUMBERS if name in first}
        if "group" in first and self.groups:
            columns["group"] = torch.tensor([self.groups.get(str(row["group"]), -1) for row in rows])
        if "label" in first:
            columns["label"] = torch.tensor([bool(row["label"]) for row in rows])
            columns["pair"] = torch.tensor([int(row.get("pair", -1)) for row in rows])
        if self.rewards:
            carrying = [field for field in self.fields if field != "gold"]  # they come first
            names = ["rewards" if field == "completion" else f"rewards_{field}" for field in carrying]
            columns["rewards"] = torch.tensor(np.array([[row[name] for row in rows] for name in names])).float()
        return columns


def read_scores(reader: ScoreReader, sequences: Mapping[str, Sequence[ScoredSequence]], layout: Layout) -> torch.Tensor:
    """Returns the cached scores of every completion, laid out ``[F, N, T]`` float32 as ``layout["mask"]`` is."""
    scores = torch.zeros(layout["mask"].shape, dtype=torch.float32)
    for f, field in enumerate(layout["fields"]):
        if field == PROMPT:
            continue
        values = reader.get([sequence_key(s) for s in sequences[field]])
        for n, value in enumerate(values):
            scores[f, n, : len(value)] = torch.from_numpy(np.array(value, dtype=np.float32))
    return scores


def read_hidden(reader: ScoreReader, sequences: Mapping[str, Sequence[ScoredSequence]], layout: Layout) -> torch.Tensor:
    """Returns cached hidden states ``[M, D]`` float32, one for each needed position of a layout, in its order."""
    keys = [sequence_key(s) for field in layout["fields"] if field != PROMPT for s in sequences[field]]
    values = reader.get(keys)
    depth = layout["mask"].shape[-1]
    slots = layout["slot"].numpy()
    owners, tokens = slots // depth, slots % depth
    hidden = np.zeros((len(slots), values[0].shape[-1]), dtype=np.float32)
    for index, value in enumerate(values):
        mine = owners == index
        hidden[mine] = np.asarray(value, dtype=np.float32)[tokens[mine]]
    return torch.from_numpy(hidden)
