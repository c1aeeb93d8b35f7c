"""Rows of several answers to one prompt: read, equal answers made one, and what a run takes of them."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from .columns import number
from .options import DataOptions
from .schema import RowError

FIELDS = ("completions", "scores", "rank", "ranks", "rewards")
"""Fields of a row that say what its answers are, and how good."""

PAIR_FIELDS = ("chosen", "rejected", "score_chosen", "score_rejected", "rewards_chosen", "rewards_rejected")


@dataclass(frozen=True)
class Answers:
    """Answers to one prompt, in the order of the row.

    Attributes:
        names: what messages call each: the place where it stands in the row.
        values: the answers, as text or messages.
        scores: how good each is, higher is better.
        ordered: whether scores only say an order: made from ranks, or from chosen and rejected.
        rewards: what each is worth by several objectives, or None.
        repeated, left_out: how many equal another and were made one with it; how many a run does not take.
        tied: how many had a score of their own that float32 does not tell from another's.
    """

    names: Sequence[str]
    values: Sequence[Any]
    scores: Sequence[float]
    ordered: bool = False
    rewards: Sequence[Any] | None = None
    repeated: int = 0
    left_out: int = 0
    tied: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def columns(self, *, always: bool = False) -> dict[str, Any]:
        """Returns scores, where they say more than an order (or ``always``), and rewards as columns."""
        scores = {"scores": list(self.scores)} if always or not self.ordered else {}
        return scores | ({} if self.rewards is None else {"rewards": list(self.rewards)})

    def taken(self, places: Sequence[int]) -> Answers:
        """Returns the answers at these places; the others are left out."""
        return replace(
            self,
            names=[self.names[place] for place in places],
            values=[self.values[place] for place in places],
            scores=[self.scores[place] for place in places],
            rewards=None if self.rewards is None else [self.rewards[place] for place in places],
            left_out=self.left_out + len(self) - len(places),
        )


def is_list(raw: Mapping[str, Any]) -> bool:
    """Whether a row has several answers: ``completions``, or ``rejected`` as a list of texts or of conversations."""
    if "chosen" in raw or "rejected" in raw:
        rejected = raw.get("rejected")
        return isinstance(rejected, list) and bool(rejected) and isinstance(rejected[0], (str, list))
    return "completions" in raw


def read_answers(raw: Mapping[str, Any]) -> Answers:
    """Reads the answers of a row that has several.

    ``completions`` with ``scores`` (higher is better) or ``rank`` (1 is best), or ``chosen`` with ``rejected`` as a
    list. A rank r becomes the score ``max(ranks) - r``; chosen has 1 and every rejected one 0 unless ``score_chosen``
    and the list ``score_rejected`` say more. Equal answers become one, with the mean of their scores and the rewards of
    the first.

    Raises:
        RowError: fewer than two different answers, no finite number for each, or all equally good.
    """
    answers = _chosen_and_rejected(raw) if "chosen" in raw or "rejected" in raw else _completions(raw)
    same: list[int] = [list(answers.values).index(value) for value in answers.values]
    merged = merge(answers, same)
    if len(merged) < 2:
        raise RowError(f"all {len(answers)} completions are equal")
    if min(merged.scores) == max(merged.scores):
        raise RowError(f"all {len(merged)} completions are equally good")
    return merged


def _completions(raw: Mapping[str, Any]) -> Answers:
    answers = raw["completions"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise RowError("completions must be a list of two answers or more")
    name = next((one for one in ("scores", "ranks", "rank") if raw.get(one) is not None), None)
    if name is None:
        raise RowError("scores (or rank) is missing beside completions")
    numbers = _numbers(raw[name], name, len(answers), "completions")
    rewards = None if raw.get("rewards") is None else _rewards(raw["rewards"], "rewards", len(answers))
    ranked = name != "scores"
    scores = [max(numbers) - one for one in numbers] if ranked else numbers
    return Answers([f"completions[{index}]" for index in range(len(answers))], answers, scores, ranked, rewards)


def _chosen_and_rejected(raw: Mapping[str, Any]) -> Answers:
    if raw.get("chosen") is None:
        raise RowError("chosen is missing")
    several = is_list(raw)
    rejected: list[Any] = raw["rejected"] if several else [raw["rejected"]]
    names = ["chosen", *([f"rejected[{index}]" for index in range(len(rejected))] if several else ["rejected"])]
    scores, ordered = [1.0] + [0.0] * len(rejected), True
    if raw.get("score_chosen") is not None and raw.get("score_rejected") is not None:
        worse, ordered = raw["score_rejected"], False
        others = _numbers(worse, "score_rejected", len(rejected)) if several else [number(worse, "score_rejected")]
        scores = [number(raw["score_chosen"], "score_chosen"), *others]
        if scores[0] <= max(others):
            raise RowError(f"score_chosen is {scores[0]:g} and score_rejected {max(others):g}: chosen is not better")
    best, rewards = raw.get("rewards_chosen"), raw.get("rewards_rejected")
    if best is None or rewards is None:
        return Answers(names, [raw["chosen"], *rejected], scores, ordered)
    given = _rewards(rewards, "rewards_rejected", len(rejected)) if several else [rewards]
    return Answers(names, [raw["chosen"], *rejected], scores, ordered, [best, *given])


def _numbers(numbers: Any, name: str, count: int, of: str = "rejected") -> list[float]:
    if not isinstance(numbers, list) or not all(_is_number(one) for one in numbers):
        raise RowError(f"{name} must be a list of finite numbers")
    if len(numbers) != count:
        raise RowError(f"{of} has {count} answers and {name} {len(numbers)} numbers")
    return [float(one) for one in numbers]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _rewards(rewards: Any, name: str, count: int) -> list[Any]:
    if not isinstance(rewards, list) or len(rewards) != count:
        raise RowError(f"{name} must be a list with an entry for each of the {count} completions")
    return rewards


def merge(answers: Answers, same: Sequence[int]) -> Answers:
    """Makes answers one that are the same: ``same`` holds, for each, the place of the first that it equals."""
    first = [place for place, one in enumerate(same) if place == one]
    scores = list(answers.scores)
    for place in first:
        equal = [score for score, one in zip(answers.scores, same, strict=True) if one == place]
        scores[place] = sum(equal) / len(equal)
    merged = replace(answers, scores=scores).taken(first)
    return replace(merged, left_out=answers.left_out, repeated=answers.repeated + len(answers) - len(first))


def in_single(answers: Answers) -> Answers:
    """Ties answers whose scores are one number in float32, in which losses read them: each has the highest of these.

    Raises:
        RowError: a score is beyond float32, or all are one number in it.
    """
    single = array("f", answers.scores)
    if not all(map(math.isfinite, single)):
        largest = max(answers.scores, key=abs)
        raise RowError(f"a score is {largest:g}; losses are given float32, which ends at 3.4e+38")
    if min(single) == max(single):
        raise RowError(
            f"all {len(answers)} completions are equally good in float32, in which losses are given scores: found "
            f"{min(answers.scores)!r} to {max(answers.scores)!r}; take off what they share, or write rank"
        )
    highest = {one: score for score, one in sorted(zip(answers.scores, single, strict=True))}
    scores = [highest[one] for one in single]
    changed = sum(one != score for one, score in zip(scores, answers.scores, strict=True))
    return replace(answers, scores=scores, tied=answers.tied + changed)


def selected(answers: Answers, prompt: Any, options: DataOptions) -> Answers:
    """Returns the answers that a run takes: those of ``lists_as`` where it is told pairs, ``max_completions`` at most.

    Where not all are taken, those with the lowest hash of prompt and answer are: drawn by content, the same each time.
    Of equally good ones the first is the best or the worst of pairs, and the one with the lowest hash that of lists.

    Raises:
        RowError: a list has scores that float32 cannot hold, or tell apart.
    """
    lists = options.kind == "lists"
    answers = in_single(answers) if lists else answers
    best, worst = (
        min(
            (place for place, score in enumerate(answers.scores) if score == end),
            key=lambda place: (_chance(prompt, answers.values[place]) if lists else b"", place),
        )
        for end in (max(answers.scores), min(answers.scores))
    )
    worse = [place for place, score in enumerate(answers.scores) if score < answers.scores[best]]
    drawn = sorted(worse, key=lambda place: _chance(prompt, answers.values[place]))
    places = list(range(len(answers)))
    if not lists and options.lists_as != "all":
        places = {"best_worst": [best, worst], "best_random": [best, drawn[0]]}.get(options.lists_as, [best, *worse])
    most = options.max_completions
    if most is not None and len(places) > most:
        others = sorted(
            (place for place in places if place not in (best, worst)),
            key=lambda place: _chance(prompt, answers.values[place]),
        )
        places = [best, worst, *others[: most - 2]]
    return answers.taken(sorted(places))


def _chance(prompt: Any, answer: Any) -> bytes:
    return hashlib.blake2b(repr((prompt, answer)).encode("utf-8", "backslashreplace"), digest_size=8).digest()


def ordered_pairs(scores: Sequence[float], lists_as: str) -> tuple[tuple[int, int], ...]:
    """Returns the places of (better, worse) of the pairs that a list is read as; of equally good ones none."""
    places = range(len(scores))
    if lists_as == "all":
        better = sorted(places, key=lambda place: -scores[place])
    else:
        better = [list(scores).index(max(scores))]
    return tuple((one, other) for one in better for other in places if scores[one] > scores[other])


def pair_columns(columns: Mapping[str, Any], better: int, worse: int) -> dict[str, Any]:
    """Returns the columns of one pair of a list: its scores and rewards become those of chosen and rejected."""
    row = {name: value for name, value in columns.items() if name not in FIELDS}
    for side, place in (("chosen", better), ("rejected", worse)):
        if "scores" in columns:
            row[f"score_{side}"] = columns["scores"][place]
        if "rewards" in columns:
            row[f"rewards_{side}"] = columns["rewards"][place]
    return row
