"""The rules: the answers to one prompt with their scores in, couples (better, worse) out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Couple = tuple[int, int]  # places of the better and of the worse answer


class Asked(Protocol):
    """What a rule reads of the options."""

    @property
    def sigmas(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def threshold(self) -> float: ...


@dataclass
class Scored:
    """The answers to one prompt that a rule chooses from.

    Attributes:
        scores: of each, after the length penalty; higher is better.
        wins: whether the scores are shares of comparisons that were won.
        passed: of each answer, whether it passes each of the prompt's tests; empty where there are none.
        chance: draws by the seed and the prompt.
    """

    scores: Sequence[float]
    wins: bool = False
    passed: Sequence[Sequence[bool | None]] = ()
    chance: random.Random = field(default_factory=random.Random)

    def best(self) -> int:
        """The place of the highest score; of equal ones the first."""
        return max(range(len(self.scores)), key=lambda i: self.scores[i])

    def worst(self) -> int:
        """The place of the lowest score; of equal ones the first."""
        return min(range(len(self.scores)), key=lambda i: self.scores[i])


Rule = Callable[[Scored, Asked], list[Couple]]


def best_worst(one: Scored, asked: Asked) -> list[Couple]:
    """The best answer over the worst: argmax s, argmin s."""
    return [(one.best(), one.worst())]


def best_random(one: Scored, asked: Asked) -> list[Couple]:
    """The best answer over another one, drawn evenly."""
    best = one.best()
    return [(best, one.chance.choice([i for i in range(len(one.scores)) if i != best]))]


def best_sigma(one: Scored, asked: Asked) -> list[Couple]:
    """The best answer over the one nearest to mean - sigmas * deviation (2 sigma by default).

    Source: arXiv 2502.16825: with more samples best over worst gets worse, and this does not.
    """
    mean = math.fsum(one.scores) / len(one.scores)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in one.scores) / len(one.scores))
    aim, best = mean - asked.sigmas * deviation, one.best()
    others = [i for i in range(len(one.scores)) if i != best]
    return [(best, min(others, key=lambda i: abs(one.scores[i] - aim)))]


def all_pairs(one: Scored, asked: Asked) -> list[Couple]:
    """Every answer over every other of a lower score: s_i > s_j.

    Source: FactTune (Tian et al. 2023, arXiv 2311.08401), where s is the share of supported claims. Equal scores are
    ties, which ``pairs`` drops and counts.
    """
    order = [(i, j) for i in range(len(one.scores)) for j in range(i + 1, len(one.scores))]
    return [(i, j) if one.scores[i] >= one.scores[j] else (j, i) for i, j in order]


def rso(one: Scored, asked: Asked) -> list[Couple]:
    """Pairs of samples of the policy that the scores would make optimal, by statistical rejection sampling.

    Each answer is accepted with probability exp((s - s_max) / beta); those accepted are coupled in a random order, two
    by two, and ranked by their scores ("first-round-rank").

    Source: RSO (Liu et al. 2023, arXiv 2309.06657), algorithm 1.
    """
    top = max(one.scores)
    taken = [i for i, s in enumerate(one.scores) if one.chance.random() < math.exp((s - top) / asked.beta)]
    one.chance.shuffle(taken)
    couples = zip(taken[::2], taken[1::2], strict=False)
    return [(i, j) if one.scores[i] >= one.scores[j] else (j, i) for i, j in couples]


def win_rate(one: Scored, asked: Asked) -> list[Couple]:
    """The highest over the lowest win rate P_i = mean_j P(i beats j), which become ``score_*`` (SPPO).

    Of judges that compare, P is their scores. Of rewards it is what Bradley-Terry says: P(i beats j) = sigmoid(s_i -
    s_j). The mean leaves i itself out.

    Source: SPPO (Wu et al. 2024, arXiv 2405.00675), section 4.
    """
    one.scores = one.scores if one.wins else win_rates(one.scores)
    return best_worst(one, asked)


def win_rates(scores: Sequence[float]) -> list[float]:
    """Returns mean over j != i of sigmoid(s_i - s_j), of each i."""
    count = len(scores)
    return [
        math.fsum(_sigmoid(scores[i] - scores[j]) for j in range(count) if j != i) / (count - 1) for i in range(count)
    ]


def pass_fail(one: Scored, asked: Asked) -> list[Couple]:
    """Answers that pass over answers that fail, each as often as the others, in a drawn order."""
    passing = [i for i, s in enumerate(one.scores) if s >= asked.threshold]
    failing = [i for i, s in enumerate(one.scores) if s < asked.threshold]
    if not passing or not failing:
        return []
    one.chance.shuffle(passing)
    one.chance.shuffle(failing)
    longer, shorter = (passing, failing) if len(passing) >= len(failing) else (failing, passing)
    couples = [
        (longer[k], shorter[(k + shift) % len(shorter)]) for shift in range(len(shorter)) for k in range(len(longer))
    ]
    return couples if longer is passing else [(j, i) for i, j in couples]


def minimax(one: Scored, asked: Asked) -> list[Couple]:
    """The code that passes most of the prompt's own tests over the one that passes fewest, each joined to a test.

    The chosen code is argmax_i sum_j passed_ij, the rejected one argmin. ``joined_tests`` says with which test each is
    joined: what is trained on are code and test together.

    Source: DSTC (Liu et al. 2024, arXiv 2411.13611), of which the description was read, not the equations.
    """
    one.scores = [math.fsum(1.0 for value in row if value) / max(1, len(row)) for row in one.passed]
    return best_worst(one, asked)


def joined_tests(passed: Sequence[Sequence[bool | None]], couple: Couple) -> Couple | None:
    """Returns the tests that the chosen and the rejected code of ``minimax`` are joined to.

    The chosen one goes with the test that most codes pass among those that it passes, the rejected one with the test
    that fewest codes pass among those that it fails; of equal ones the first. A wrong test, which good code fails, thus
    stays out of the chosen side. None where the chosen code passes nothing, or the rejected one fails nothing.
    """
    better, worse = couple
    votes = [sum(bool(row[test]) for row in passed) for test in range(len(passed[better]))]
    good = [test for test, value in enumerate(passed[better]) if value]
    bad = [test for test, value in enumerate(passed[worse]) if value is False]
    if not good or not bad:
        return None
    return max(good, key=lambda test: votes[test]), min(bad, key=lambda test: votes[test])


def steps(one: Scored, asked: Asked) -> list[Couple]:
    """Of sibling steps every better one over every worse: |Q_i - Q_j| > tau, where tau is ``min_margin``.

    The prompt ends in the steps that came before, as the opening of an assistant's turn.

    Source: Step-DPO (Lai et al. 2024, arXiv 2406.18629) and Agent Q (Putta et al. 2024, arXiv 2408.07199).
    """
    return all_pairs(one, asked)


RULES: dict[str, Rule | None] = {
    "best_worst": best_worst,
    "west_of_n": best_worst,
    "best_random": best_random,
    "best_sigma": best_sigma,
    "all_pairs": all_pairs,
    "rso": rso,
    "win_rate": win_rate,
    "human_own": None,  # the three that are no choice among scores
    "best": None,
    "lists": None,
    "pass_fail": pass_fail,
    "minimax": minimax,
    "steps": steps,
}
_OTHERS = {
    "human_own": "What a person answered over each of the model's own answers (SPIN, Chen et al. 2024).",
    "best": "The best answer alone, as a row for supervised training (rejection sampling, best of n).",
    "lists": "All answers with their scores, for losses of lists.",
}


_NO_PAIRS = {"best": "labelled", "lists": "lists"}


def gives(rule: str) -> str:
    """Returns what rows a rule makes, as ``Needs.data`` of losses calls it: "pairs", "labelled" or "lists"."""
    return _NO_PAIRS.get(rule, "pairs")


def describe(rule: str) -> str:
    """Returns a rule in a sentence."""
    function = RULES[rule]
    return _OTHERS[rule] if function is None else (function.__doc__ or "").strip().splitlines()[0]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
