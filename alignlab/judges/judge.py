"""What a judge is given and what it says: comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, Any]]  # as the data has it: text, or messages

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

    def usage(self) -> dict[str, Any]:
        """Returns what judging has cost so far, where it costs anything."""
        return {}


def by_rewards(reward: float, reference: float) -> Verdict:
    """Returns the verdict of the higher reward."""
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
