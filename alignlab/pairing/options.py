"""How pairs are made of answers: the rule, and what all rules have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Literal, get_type_hints

from alignlab.config import check_type

from .rules import RULES

# Of the options of all rules those that say nothing to some, which would be ignored without a word.
_UNREAD = {
    "human_own": ("min_margin", "length_penalty"),
    "minimax": ("length_penalty",),
    "best": ("min_margin", "max_length_ratio", "per_prompt", "gold"),
    "lists": ("max_length_ratio", "per_prompt", "gold"),
}
_OF_ONE = {"sigmas": "best_sigma", "beta": "rso", "threshold": "pass_fail", "least": "best"}  # option: its only rule


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are made of the answers to a prompt.

    Attributes:
        rule: one of ``RULES``. score: the judge that decides, by its name; None where there is one alone.
        min_margin: pairs whose scores are not further apart than this are dropped; ties always are.
        max_length_ratio: pairs in which one answer has more than so many times the tokens of the other are dropped.
        length_penalty: taken off the score for each token of an answer, before any rule looks at it.
        dedupe: of answers with equal tokens keep the first.
        unfinished: "drop" answers that did not end by themselves, or "keep" them (their tokens have no end then).
        per_prompt: most pairs of a prompt, of rules that make several; which ones, the seed decides. None: all.
        gold: put what a person answered beside each pair, for losses that ask for ``gold``.
        seed: of what a rule draws; hashed with the prompt, so that no row depends on its neighbours.
        sigmas: of best_sigma: how far below the mean the rejected answer is looked for.
        beta: of rso: the temperature of acceptance. threshold: of pass_fail: the least score that passes.
        least: of best: prompts whose best answer scores less are left out.
    """

    rule: str = "best_worst"
    score: str | None = None
    min_margin: float = 0.0
    max_length_ratio: float | None = None
    length_penalty: float = 0.0
    dedupe: bool = True
    unfinished: Literal["drop", "keep"] = "drop"
    per_prompt: int | None = None
    gold: bool = False
    seed: int = 0
    sigmas: float = 2.0
    beta: float = 0.5
    threshold: float = 0.5
    least: float | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in hints.keys() - {"unfinished"}:  # whose own message says more
            value = getattr(self, name)
            check_type(name, value, hints[name])
            if isinstance(value, float) and not math.isfinite(value):  # which no bound would hold
                raise ValueError(f"{name}: expected a finite number, found {value}")
        if self.rule not in RULES:
            near = get_close_matches(self.rule, RULES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"rule: expected one of {', '.join(RULES)}, found {self.rule!r}{hint}")
        if self.unfinished not in ("drop", "keep"):
            raise ValueError(f"unfinished: expected drop or keep, found {self.unfinished!r}")
        if self.min_margin < 0:
            raise ValueError(f"min_margin: expected 0 or more, found {self.min_margin}")
        if self.max_length_ratio is not None and self.max_length_ratio < 1:
            raise ValueError(f"max_length_ratio: expected 1 or more, found {self.max_length_ratio}")
        if self.beta <= 0:
            raise ValueError(f"beta: expected more than 0, found {self.beta}")
        if self.per_prompt is not None and self.per_prompt < 1:
            raise ValueError(f"per_prompt: expected at least 1, found {self.per_prompt}")
        defaults = {one.name: one.default for one in fields(self)}
        for name in _UNREAD.get(self.rule, ()):
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}: the rule {self.rule} has no use for it; leave it out")
        for name, rule in _OF_ONE.items():
            if rule != self.rule and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}: the rule {self.rule} has no use for it; leave it out, or take rule {rule}")
