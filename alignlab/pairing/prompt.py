"""The answers to one prompt on their way into pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from alignlab.answers import Answer, AnswerRow

from .options import PairOptions
from .rules import RULES, Scored, joined_tests

Pair = dict[str, Any]
LARGEST = 1e30  # of a score: rules add and square what they are given


class PromptPairs:
    """The answers to one prompt on their way into pairs; ``fates`` is filled in."""

    def __init__(self, row: AnswerRow, options: PairOptions, fates: list[str], dropped: Counter[str]) -> None:
        self.row, self.options, self.fates, self.dropped = row, options, fates, dropped
        self.judge = _judge(row, options) if options.rule not in ("human_own", "minimax") else ""
        self.rule = RULES[options.rule]

    def rows(self) -> Iterator[Pair]:
        """Yields the pairs, and leaves no answer without a fate."""
        left = self._usable()
        if self.options.rule == "human_own":
            yield from self._against_human(left)
        elif self.options.rule == "best":
            yield from self._best(left)
        elif self.options.rule == "lists":
            yield from self._list(left)
        else:
            yield from self._coupled(left)
        for index, fate in enumerate(self.fates):
            self.fates[index] = fate or "not_picked"

    def _usable(self) -> list[int]:
        """Returns the places of answers that a rule may see, and says why the others are none."""
        seen: set[Any] = set()
        left = []
        for index, one in enumerate(self.row.answers):
            tokens = one.text if one.ids is None else tuple(one.ids)
            if one.finished is False and self.options.unfinished == "drop":
                self.fates[index] = "unfinished"
            elif one.finished is False and one.ids is None:
                self.fates[index] = "text_only"  # training would write an end behind it that it never had
            elif not (one.text.strip() if one.ids is None else one.ids):  # an end alone is a token
                self.fates[index] = "empty"
            elif self.options.dedupe and tokens in seen:
                self.fates[index] = "duplicate"
            elif self.judge and not _judged(one, self.judge):
                self.fates[index] = "unjudged"
            elif self.options.rule == "minimax" and not _tested(one, self.row):
                self.fates[index] = "untested"
            else:
                left.append(index)
            seen.add(tokens)
        return left

    def _score(self, index: int) -> float:
        one = self.row.answers[index]
        score = one.scores[self.judge]
        assert score is not None
        if abs(score) > LARGEST:
            raise ValueError(
                f"score: {self.judge!r} gave {score} to answer {index} of prompt {self.row.prompt_id}; a score beyond "
                f"{LARGEST:g} is no measure of anything"
            )
        if self.options.length_penalty == 0:
            return score
        if one.ids is None:
            raise ValueError(
                f"length_penalty: it is taken off for each token, and the tokens of answer {index} to prompt "
                f"{self.row.prompt_id} are not known; leave it out for answers of text alone"
            )
        return score - self.options.length_penalty * len(one.ids)

    def _coupled(self, left: list[int]) -> Iterator[Pair]:
        if len(left) < 2:
            self._befall(left, "alone")
            return
        one = Scored([self._score(index) for index in left] if self.judge else [], chance=self._chance())
        one.wins = self.row.judges.get(self.judge, {}).get("kind") == "wins"
        one.passed = [self.row.answers[index].passed or [] for index in left]
        assert self.rule is not None
        couples = self.rule(one, self.options)
        if not couples and self.options.rule == "pass_fail":
            self._befall(left, "all_pass" if one.scores[0] >= self.options.threshold else "all_fail")
        good: list[tuple[int, int]] = []
        for couple in couples:
            if reason := self._against(one, couple, left):
                self.dropped[reason] += 1
                same = couple[0] == couple[1]  # the best is the worst: all are alike
                self._befall(left if same else [left[place] for place in couple], reason)
            else:
                good.append(couple)
        taken = set(self._some(good))
        for couple in good:
            better, worse = (left[place] for place in couple)
            if couple in taken:
                yield self._pair(better, worse, one.scores[couple[0]], one.scores[couple[1]], one, couple)
            else:
                self.dropped["not_taken"] += 1
                self._befall([better, worse], "not_taken")

    def _against(self, one: Scored, couple: tuple[int, int], left: list[int]) -> str:
        """Returns why a couple is no pair; empty where it is one."""
        gap = one.scores[couple[0]] - one.scores[couple[1]]
        better, worse = (self.row.answers[left[place]] for place in couple)
        if couple[0] == couple[1] or gap == 0 or better.text == worse.text:  # also one text in other tokens
            return "tie"
        if gap <= self.options.min_margin:
            return "margin"
        if self.options.rule == "minimax" and joined_tests(one.passed, couple) is None:
            return "no_test"
        return "length" if self._too_unlike(better, worse) else ""

    def _too_unlike(self, one: Answer, other: Answer) -> bool:
        """Compares tokens; where those of one are not known, the characters of both."""
        tokens = [len(part.ids) for part in (one, other) if part.ids is not None]
        sizes = tokens if len(tokens) == 2 else [len(part.text) for part in (one, other)]
        most, lengths = self.options.max_length_ratio, sorted(max(1, size) for size in sizes)
        return most is not None and lengths[1] > most * lengths[0]

    def _some(self, couples: list[tuple[int, int]]) -> list[tuple[int, int]]:
        most = self.options.per_prompt
        if most is None or len(couples) <= most:
            return couples
        return couples[:most] if self.options.rule == "pass_fail" else self._chance().sample(couples, most)

    def _chance(self) -> random.Random:
        return random.Random(f"{self.options.seed} {self.row.prompt_id} {self.options.rule}")

    def _befall(self, indices: Iterable[int], fate: str) -> None:
        """Says what became of answers, unless they are in a pair."""
        for index in indices:
            if self.fates[index] not in ("chosen", "rejected", "both"):
                self.fates[index] = fate

    def _took(self, index: int, side: str) -> None:
        other = {"chosen": "rejected", "rejected": "chosen"}[side]
        self.fates[index] = "both" if self.fates[index] in (other, "both") else side

    # ---- rows ----------------------------------------------------------------------------------------------------

    def _pair(self, better: int, worse: int, high: float, low: float, one: Scored, couple: tuple[int, int]) -> Pair:
        self._took(better, "chosen")
        self._took(worse, "rejected")
        sides = {"chosen": self.row.answers[better], "rejected": self.row.answers[worse]}
        origin: dict[str, Any] = {"chosen": better, "rejected": worse}
        if self.options.rule == "minimax":
            tests = joined_tests(one.passed, couple)
            assert tests is not None
            sides = {
                name: _joined(side, self.row.tests[n]) for (name, side), n in zip(sides.items(), tests, strict=True)
            }
            origin["tests"] = list(tests)
        scores = {"score_chosen": high, "score_rejected": low, "margin": high - low}
        return self._row({name: (side.text, side.ids) for name, side in sides.items()}, scores, origin)

    def _against_human(self, left: list[int]) -> Iterator[Pair]:
        human, ids = self.row.human, self.row.human_ids
        if human is None or ids is None:
            self._befall(left, "no_human")
            return
        good = []
        for index in left:
            own = self.row.answers[index]
            unlike = self._too_unlike(Answer(human, ids), own)
            reason = "equal" if own.ids == ids or own.text == human else "length" if unlike else ""
            if reason:
                self.dropped[reason] += 1
                self._befall([index], reason)
            else:
                good.append((index, index))
        taken = set(self._some(good))
        for couple in good:
            if couple not in taken:
                self.dropped["not_taken"] += 1
                self._befall(couple[:1], "not_taken")
                continue
            index = couple[0]
            self._took(index, "rejected")
            own = self.row.answers[index]
            origin = {"chosen": "human", "rejected": index}
            yield self._row({"chosen": (human, ids), "rejected": (own.text, own.ids)}, {}, origin)

    def _best(self, left: list[int]) -> Iterator[Pair]:
        if not left:
            return
        best = max(left, key=self._score)
        if self.options.least is not None and self._score(best) < self.options.least:
            self._befall(left, "below")
            return
        self._took(best, "chosen")
        one = self.row.answers[best]
        yield self._row({"completion": (one.text, one.ids)}, {}, {"completion": best}) | {"label": True}

    def _list(self, left: list[int]) -> Iterator[Pair]:
        if len(left) < 2:
            self._befall(left, "alone")
            return
        scores = [self._score(index) for index in left]
        if max(scores) - min(scores) <= self.options.min_margin:
            reason = "tie" if max(scores) == min(scores) else "margin"
            self.dropped[reason] += 1
            self._befall(left, reason)
            return
        self._befall(left, "listed")
        some = [self.row.answers[index] for index in left]
        row = self._row({}, {}, {"completions": left})
        row |= {"completions": [one.text for one in some], "scores": scores}
        if all(one.ids is not None for one in some):
            row |= {"prompt_ids": self.row.prompt_ids, "completions_ids": [one.ids for one in some]}
            row["origin"]["tokens"] = "ids"
        yield row

    def _row(self, sides: dict[str, tuple[str, list[int] | None]], scores: Pair, origin: dict[str, Any]) -> Pair:
        """Returns a row with its sides as text and, where all of them are known, as tokens."""
        row: Pair = {"prompt": self.row.prompt, **{name: text for name, (text, _) in sides.items()}}
        if self.options.gold and self.row.human is not None:
            sides = {**sides, "gold": (self.row.human, self.row.human_ids)}
            row["gold"] = self.row.human
        known = bool(sides) and all(ids is not None for _, ids in sides.values())
        if known:
            row |= {"prompt_ids": self.row.prompt_ids, **{f"{name}_ids": ids for name, (_, ids) in sides.items()}}
        if self.row.group is not None:
            row["group"] = self.row.group
        told = {"prompt_id": self.row.prompt_id, "model": self.row.model, "round": self.row.round}
        told |= {"rule": self.options.rule, "judge": self.judge or None, "tokens": "ids" if known else "text"}
        return {**row, **scores, "origin": told | origin}


def _judge(row: AnswerRow, options: PairOptions) -> str:
    """Returns the name of the judge whose scores decide; empty where there is no answer to be scored."""
    if not row.answers:
        return ""
    names = list(dict.fromkeys(name for one in row.answers for name in one.scores))
    if options.score is not None:
        if options.score not in names:
            raise ValueError(
                f"score: no judge called {options.score!r} scored prompt {row.prompt_id}; found {_named(names)}"
            )
        return options.score
    if len(names) != 1:
        raise ValueError(
            f"score: which judge decides? prompt {row.prompt_id} has {_named(names)}; name one with --score"
        )
    return names[0]


def _judged(one: Answer, judge: str) -> bool:
    """True where a judge gave a score; NaN and infinity, which compare with nothing, are none."""
    score = one.scores.get(judge)
    return score is not None and math.isfinite(score)


def _named(names: list[str]) -> str:
    return ", ".join(names) or "scores of none (`alignlab judge` first)"


def _tested(one: Answer, row: AnswerRow) -> bool:
    passed = one.passed or []
    return bool(row.tests) and len(passed) == len(row.tests) and all(value is not None for value in passed)


def _joined(code: Answer, test: Answer) -> Answer:
    """Returns a code and a test as one answer: the code's end is left out, the test's ends both."""
    ids = None
    if code.ids is not None and test.ids is not None:
        ids = (code.ids[:-1] if code.finished else code.ids) + test.ids
    return Answer(code.text + test.text, ids, test.finished)
