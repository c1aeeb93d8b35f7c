"""What `alignlab eval` does with a reward model: held-out pairs by subset, or rows of RewardBench 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import send_to_device
from torch import nn

from alignlab import scoring
from alignlab.data import Mode, RowError, ScoredSequence, TextReader, layout_fields, layout_sequences, sequence
from alignlab.metrics import Figures, formulas, rewardbench
from alignlab.runtime import bar, evaluating, over, shown_as

from .shares import joined, share

TIES = "ties"
_BENCH = ("prompt", "chosen", "rejected", "subset")


@dataclass
class RewardRow:
    """One held-out pair: the rewards of both completions, of several outputs their mean, and their tokens."""

    row: int
    source: str
    group: str | None
    chosen_reward: float
    rejected_reward: float
    chosen_tokens: int
    rejected_tokens: int


@dataclass
class BenchRow:
    """One row of RewardBench 2: the rewards of its correct answers and of the wrong ones."""

    row: int
    source: str
    id: str
    subset: str
    correct: list[float]
    wrong: list[float]


def reward_pairs(
    model: nn.Module, dataset: Any, pad_id: int, *, batch_size: int = 8, mode: Mode = "padded", progress: bool = False
) -> list[RewardRow]:
    """Returns the rewards of every pair of a tokenised dataset, on every rank; each prompt goes through once."""
    mine, rows = share(len(dataset)), dataset.with_format("numpy")
    device, found = next(model.parameters()).device, list[RewardRow]()
    starts = range(0, len(mine), batch_size)
    for start in over(starts, bar("pairs", len(starts), "batches", shown_as() if progress else "none")):
        indices = mine[start : start + batch_size]
        batch = [rows[index] for index in indices]
        fields = {name: [sequence(row, name) for row in batch] for name in ("chosen", "rejected")}
        layout = send_to_device(layout_fields(fields, pad_id, mode), device)
        with evaluating(model):
            rewards = scoring.values(model, layout).double().mean(-1).tolist()
        tokens = layout["mask"].sum(-1).tolist()
        for n, index in enumerate(indices):
            group = str(batch[n]["group"]) if "group" in batch[n] else None
            own = (rewards[0][n], rewards[1][n], tokens[0][n], tokens[1][n])
            found.append(RewardRow(index, str(batch[n]["source"]), group, *own))
    return joined(found, lambda row: row.row)


def reward_figures(rows: Sequence[RewardRow]) -> Figures:
    """Returns the figures of pairs in sections: "preference", "reward", "calibration", "length", "groups", "group"."""
    good, bad, *tokens = (
        np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens")
    )
    every, lengths = np.concatenate((good, bad)), np.concatenate(tokens)
    against = formulas.length_exploitation(lengths, every)
    figures: Figures = {
        "preference": formulas.preference_accuracy(good, bad),
        "reward": {"chosen": float(good.mean()), "rejected": float(bad.mean()), "spread": float(every.std())},
        "calibration": formulas.margin_calibration(good - bad),
        "length": {
            **formulas.pair_length_bias(good - bad, *tokens),
            **{f"reward_{name}": against[name] for name in ("pearson", "spearman", "slope")},
        },
    }
    if rows[0].group is not None:
        found = formulas.group_accuracy(good, bad, [str(row.group) for row in rows])
        figures |= {"groups": found.pop("groups"), "group": found}
    return figures


# ---- RewardBench 2 -------------------------------------------------------------------------------------------------


def is_bench(raw: Any) -> bool:
    """True for a row as RewardBench 2 has it: one prompt with lists of correct and of wrong answers, and a subset."""
    if not isinstance(raw, Mapping) or any(raw.get(name) is None for name in _BENCH):
        return False
    return all(isinstance(raw[name], (list, tuple)) and _all_text(raw[name]) for name in ("chosen", "rejected"))


def reward_bench(
    model: nn.Module, rows: Sequence[tuple[str, Mapping[str, Any]]], reader: TextReader, pad_id: int, mode: Mode
) -> list[BenchRow]:
    """Returns the rewards of all answers of every row, on every rank; the answers of a row share its prompt.

    A prompt that is text becomes a user's message where the tokenizer has a chat template, as in RewardBench.

    Raises:
        ValueError: a row that is none of RewardBench 2, or cannot be read; names its file and line.
    """
    device, found = next(model.parameters()).device, list[BenchRow]()
    for index in share(len(rows)):
        place, raw = rows[index]
        if not is_bench(raw):
            raise ValueError(
                f"{place}: expected a row of RewardBench 2 (prompt, chosen[], rejected[], subset) as others"
            )
        correct = list(raw["chosen"])
        if raw.get("num_correct") not in (None, len(correct)):
            raise ValueError(f"{place}: num_correct is {raw['num_correct']}, and chosen has {len(correct)} answers")
        prompt = raw["prompt"]
        if isinstance(prompt, str) and reader.template.tokenizer.chat_template is not None:
            prompt = [{"role": "user", "content": prompt}]
        try:
            sequences = [_read(reader, prompt, answer) for answer in [*correct, *raw["rejected"]]]
        except RowError as error:
            raise ValueError(f"{place}: {error}") from error
        with evaluating(model):
            layout = send_to_device(layout_sequences(sequences, pad_id, mode), device)
            rewards = scoring.values(model, layout)[0].double().mean(-1).tolist()
        strange = next((one for one in rewards if not math.isfinite(one)), None)
        if strange is not None:
            raise ValueError(f"{place}: the reward of an answer is {strange}; no score can be made of that")
        one = BenchRow(index, place, str(raw.get("id", index)), str(raw["subset"]), [], rewards[len(correct) :])
        one.correct = rewards[: len(correct)]
        found.append(one)
    return joined(found, lambda row: row.row)


def bench_figures(rows: Sequence[BenchRow]) -> Figures:
    """Returns the score of each subset and their unweighted mean, as RewardBench 2 has them; "ties" in its parts too.

    Raises:
        ValueError: an answer of another subset than Ties has company, or Ties' ids are not ``ref:N`` and ``tied:N``.
    """
    subsets: dict[str, list[BenchRow]] = {}
    for row in rows:
        subsets.setdefault(row.subset, []).append(row)
    figures: Figures = {"subsets": {}}
    for name, own in sorted(subsets.items()):
        if name.lower() == TIES:
            figures["ties"] = rewardbench.ties(*_ties(own))
            score = figures["ties"]["score"]
        else:
            score = float(np.mean([_best_of(row) for row in own]))
        figures["subsets"][name] = {"score": score, "rows": len(own)}
    figures["score"] = float(np.mean([one["score"] for one in figures["subsets"].values()]))
    return figures


def _best_of(row: BenchRow) -> float:
    if len(row.correct) != 1:
        raise ValueError(
            f"{row.source}: a row of {row.subset} has one correct answer, found {len(row.correct)}; several are for "
            "the subset Ties"
        )
    return rewardbench.best_of(row.correct, row.wrong)


def _ties(rows: Sequence[BenchRow]) -> tuple[dict[int, Any], dict[int, Any]]:
    parts: dict[str, dict[int, Any]] = {"ref": {}, "tied": {}}
    for row in rows:
        kind, _, number = row.id.partition(":")
        if kind not in parts or not number.isdecimal():
            raise ValueError(f"{row.source}: id of a row of Ties: expected ref:N or tied:N, found {row.id!r}")
        if int(number) in parts[kind]:
            raise ValueError(f"{row.source}: two rows of Ties have the id {row.id!r}; one of them would not count")
        parts[kind][int(number)] = (row.correct, row.wrong)
    return parts["ref"], parts["tied"]


def _read(reader: TextReader, prompt: Any, answer: str) -> ScoredSequence:
    ids = [np.array(part, dtype=np.int64) for part in reader.ids(prompt, answer)]
    return ScoredSequence(ids[0], ids[1], np.ones(len(ids[1]), dtype=bool))


def _all_text(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(one, str) for one in values)
