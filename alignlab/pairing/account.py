"""What became of every answer, in numbers that sum to all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

# What may become of an answer, in the order in which one thing goes before another.
FATES = {
    "chosen": "chosen in a pair",
    "rejected": "rejected in a pair",
    "both": "chosen in one pair, rejected in another",
    "listed": "in a list",
    "unfinished": "did not end by itself",
    "text_only": "did not end by itself, and its tokens are not known",
    "empty": "is empty, which cannot be trained on",
    "duplicate": "has the tokens of an earlier answer",
    "unjudged": "has no score",
    "untested": "has not run against every test",
    "alone": "no other answer is left to its prompt",
    "no_human": "its prompt has no human answer with tokens",
    "equal": "is the human answer",
    "all_pass": "every answer to its prompt passes",
    "all_fail": "no answer to its prompt passes",
    "below": "the best answer to its prompt scores less than least",
    "tie": "ties with the answer that it was coupled with",
    "margin": "is not further from it than min_margin",
    "length": "is too much longer or shorter than it",
    "no_test": "the best code passes no test, or the worst fails none",
    "not_taken": "more pairs than per_prompt",
    "not_picked": "the rule picked others",
}


@dataclass
class Account:
    """What became of everything.

    Attributes:
        prompts, answers: as they were read. pairs: rows that were made.
        fates: of answers, by the names in ``FATES``; they sum to ``answers``.
        dropped: couples that a rule made and that are no pair, by the reason.
    """

    prompts: int = 0
    answers: int = 0
    pairs: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, str, int]]:
        """Returns (name, what it means, answers) of each fate that befell any, and checks that none is missing."""
        assert sum(self.fates.values()) == self.answers, "an answer disappeared"
        return [(name, meaning, self.fates[name]) for name, meaning in FATES.items() if self.fates[name]]

    def values(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            **asdict(self),
            "fates": dict(sorted(self.fates.items())),
            "dropped": dict(sorted(self.dropped.items())),
        }
