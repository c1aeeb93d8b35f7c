"""What a judge is given and what it says: comparisons and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Prompt = str | list[dict[str, Any]]  # as the data has it: text, or messages
Kind = Literal["reward", "wins"]  # of scores: on a scale of the judge's own, or shares of comparisons that were won

DISAGREE = "the orders disagree"


@dataclass(frozen=True)
class Comparison:
    """An answer to a prompt, and the completion that it is held against."""

    prompt: Prompt
    answer: str
    reference: str


@dataclass(frozen=True)
class Verdict:
    """What a judge says.

    Attributes:
        outcome: 1 the answer won, 1/2 a tie, 0 the reference won; None: it was not judged, ``note`` says why.
        reward, reference_reward: scores of both, of judges that give them.
        note: a word on it.
    """

    outcome: float | None
    reward: float | None = None
    reference_reward: float | None = None
    note: str = ""


class Judge:
    """Judges comparisons; ``description`` names it in results and holds no secret."""

    description: str

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns one verdict for each comparison, in order."""
        raise NotImplementedError

    kind: Kind = "wins"

    def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float | None]:
        """Returns how good each of K answers to one prompt is; None for one that was not judged.

        Judges that give rewards give those. Judges that compare give win rates, P_i = mean over j != i of P(i beats j),
        over the comparisons that were judged; equal texts tie, and are not asked about.
        """
        wins: list[list[float]] = [[] for _ in answers]
        couples = [(i, j) for i in range(len(answers)) for j in range(i)]
        asked = [couple for couple in couples if answers[couple[0]] != answers[couple[1]]]
        verdicts = self([Comparison(prompt, answers[i], answers[j]) for i, j in asked]) if asked else []
        outcomes = {couple: verdict.outcome for couple, verdict in zip(asked, verdicts, strict=True)}
        for i, j in couples:
            outcome = outcomes.get((i, j), 0.5)
            if outcome is not None:
                wins[i].append(outcome)
                wins[j].append(1 - outcome)
        return [sum(one) / len(one) if one else None for one in wins]

    def identity(self) -> str:
        """Returns what tells this judge from any other, wherever its files lie."""
        return self.description

    def usage(self) -> dict[str, Any]:
        """Returns what judging has cost so far, where it costs anything."""
        return {}


def by_rewards(reward: float, reference: float) -> Verdict:
    """Returns the verdict of the higher reward; none where one of them is no number."""
    if math.isnan(reward) or math.isnan(reference):
        return Verdict(None, note="a text has no reward")
    return Verdict(0.5 if reward == reference else float(reward > reference), reward, reference)


def both_orders(first: float, second: float) -> Verdict:
    """Returns the verdict of one comparison asked in both orders, as the answer's outcome each time."""
    one, other = (_decided(value) for value in (first, second))
    if one == other:
        return Verdict(one)
    return Verdict(0.5, note=DISAGREE)


def _decided(value: float) -> float:
    return 0.5 if value == 0.5 else float(value > 0.5)


def prompt_text(prompt: Prompt) -> str:
    """Returns a prompt as text: messages become paragraphs that open with their role."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{turn.get('role', '')}: {_content(turn.get('content'))}\n\n" for turn in prompt)


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts, of which only text can be shown
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")
