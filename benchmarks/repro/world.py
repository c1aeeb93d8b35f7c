"""A made-up language whose answers, rewards and best trade-off of reward against KL are known exactly."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]

VOCABULARY = 24
LENGTH = 8  # words of an answer
CONTEXT = 3  # words of a prompt, behind its topic
TOPICS = ("north", "south", "west")
WORDS = tuple(f"w{number}" for number in range(VOCABULARY))


@dataclass(frozen=True)
class World:
    """A first-order Markov chain over 24 words; each objective gives every word a worth of 1, 0 or -1.

    A prompt is a topic and three words of the chain, an answer its next eight words; the reward of an answer is the sum
    of the worths of its words. Half of the words are worth the opposite to the second objective; the third is
    independent of both.
    """

    seed: int

    @cached_property
    def transitions(self) -> Tensor:
        """Probabilities of the next word, ``[24, 24]`` float64, none below 0.1 / 24."""
        torch_random = torch.Generator().manual_seed(self.seed)
        gamma = torch._standard_gamma(torch.full((VOCABULARY, VOCABULARY), 0.4, dtype=torch.float64), torch_random)
        return 0.9 * gamma / gamma.sum(-1, keepdim=True) + 0.1 / VOCABULARY

    @cached_property
    def worth(self) -> Tensor:
        """Worth of each word to each objective, ``[3, 24]`` float64."""
        rng = random.Random(f"worth {self.seed}")
        values = [1.0, 0.0, -1.0] * (VOCABULARY // 3)
        first, third = rng.sample(values, VOCABULARY), rng.sample(values, VOCABULARY)
        same = set(rng.sample(range(VOCABULARY), VOCABULARY // 2))
        others = iter(rng.sample([first[word] for word in sorted(same)], len(same)))
        second = [next(others) if word in same else -first[word] for word in range(VOCABULARY)]
        return torch.tensor([first, second, third], dtype=torch.float64)

    # ---- rows ----------------------------------------------------------------------------------------------------

    def prompts(self, count: int, stream: str, shares: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[str]:
        """Returns random prompts; topics come in these shares."""
        rng = random.Random(f"prompts {stream} {self.seed}")
        topics = rng.choices(TOPICS, shares, k=count)
        return [f"{topic} {self._walk(rng, rng.randrange(VOCABULARY), CONTEXT)}" for topic in topics]

    def demonstrations(self, count: int, stream: str = "demonstrations") -> list[Row]:
        """Returns rows of the chain itself, for a supervised start."""
        rng = random.Random(f"{stream} {self.seed}")
        return [
            {
                "prompt": _turn("user", prompt),
                "completion": _turn("assistant", self._answer(rng, prompt)),
                "label": True,
            }
            for prompt in self.prompts(count, stream)
        ]

    def pairs(
        self,
        count: int,
        stream: str = "train",
        *,
        objectives: tuple[int, int, int] = (0, 0, 0),
        shares: tuple[float, ...] = (1.0, 1.0, 1.0),
        flipped: float = 0.0,
        rewards: tuple[int, ...] = (),
    ) -> list[Row]:
        """Returns pairs of answers of the chain, labelled by the objective of their topic as Bradley and Terry have it.

        The same stream holds the same answers and the same luck whatever the objectives and flips are. ``flipped`` is
        the share of labels turned round afterwards, ``rewards`` the objectives whose rewards the rows carry. The topic
        is the ``group``.
        """
        rng = random.Random(f"pairs {stream} {self.seed}")
        rows = []
        for prompt in self.prompts(count, f"pairs {stream}", shares):
            topic = prompt.split()[0]
            objective = objectives[TOPICS.index(topic)]
            both = self._answer(rng, prompt), self._answer(rng, prompt)
            luck, flip = rng.random(), rng.random()
            gap = self.rewards(both[0])[objective] - self.rewards(both[1])[objective]
            first_wins = (luck < 1 / (1 + math.exp(-gap))) != (flip < flipped)
            chosen, rejected = both if first_wins else both[::-1]
            row = {"prompt": _turn("user", prompt), "group": topic}
            for name, answer in (("chosen", chosen), ("rejected", rejected)):
                row[name] = _turn("assistant", answer)
                if rewards:
                    row[f"rewards_{name}"] = [self.rewards(answer)[other] for other in rewards]
            rows.append(row)
        return rows

    def lists(self, count: int, size: int, stream: str = "lists") -> list[Row]:
        """Returns rows of so many answers of the chain, ranked as Plackett and Luce have it by the first objective.

        The score of an answer is its reward plus luck that is Gumbel-distributed: sorted by it, the answers have a
        ranking's probability, and any two of them are labelled as Bradley and Terry have it, like those of ``pairs``.
        """
        rng = random.Random(f"lists {stream} {self.seed}")
        rows = []
        for prompt in self.prompts(count, f"lists {stream}"):
            answers = [self._answer(rng, prompt) for _ in range(size)]
            scores = [self.rewards(answer)[0] - math.log(-math.log(1 - rng.random())) for answer in answers]
            completions = [_turn("assistant", answer) for answer in answers]
            rows.append({"prompt": _turn("user", prompt), "completions": completions, "scores": scores})
        return rows

    def rewards(self, answer: str) -> list[float]:
        """Returns the reward of an answer by each objective; words beyond the eighth count for nothing."""
        words = [WORDS.index(word) for word in answer.split()[:LENGTH] if word in WORDS]
        return [float(value) for value in self.worth[:, words].sum(-1)]

    def _answer(self, rng: random.Random, prompt: str) -> str:
        return self._walk(rng, WORDS.index(prompt.split()[-1]), LENGTH)

    def _walk(self, rng: random.Random, word: int, count: int) -> str:
        words = []
        for _ in range(count):
            [word] = rng.choices(range(VOCABULARY), self._rows[word])
            words.append(WORDS[word])
        return " ".join(words)

    @cached_property
    def _rows(self) -> list[list[float]]:
        return [[float(value) for value in row] for row in self.transitions]

    # ---- what is best --------------------------------------------------------------------------------------------

    def tilted(self, strength: float, worth: Tensor) -> list[Tensor]:
        """Returns the policy that maximises ``strength * reward - KL`` for worths of words ``[24]``, exactly.

        A list of probabilities ``[24, 24]`` float64, one for each place of an answer: of its word given the one before.
        Backward: ``V_t(s) = log sum_s' P(s'|s) exp(strength w(s') + V_{t+1}(s'))``.
        """
        value, policies = torch.zeros(VOCABULARY, dtype=torch.float64), []
        for _ in range(LENGTH):
            logits = self.transitions.log() + strength * worth + value
            policies.append(torch.softmax(logits, -1))
            value = torch.logsumexp(logits, -1)
        return policies[::-1]

    def before(self, prompts: list[str]) -> Tensor:
        """Returns the share of each word among the last ones of the prompts, ``[24]`` float64."""
        last = torch.tensor([WORDS.index(prompt.split()[-1]) for prompt in prompts])
        return torch.bincount(last, minlength=VOCABULARY).double() / len(prompts)

    def best(self, strength: float, weights: tuple[float, ...], prompts: list[str]) -> tuple[list[float], float, float]:
        """Returns rewards by objective, KL to the chain and entropy (nats) of the answers that trade both off best.

        The answers maximise ``strength * (weights . rewards) - KL`` at these prompts; there is no better reward at the
        same KL.
        """
        policies = self.tilted(strength, torch.tensor(weights, dtype=torch.float64) @ self.worth[: len(weights)])
        state = self.before(prompts)
        rewards, kl, entropy = torch.zeros(3, dtype=torch.float64), 0.0, 0.0
        for policy in policies:
            kl += float(state @ (policy * (policy.log() - self.transitions.log())).sum(-1))
            entropy -= float(state @ (policy * policy.clamp(min=1e-300).log()).sum(-1))
            state = state @ policy
            rewards += self.worth @ state
        return [float(value) for value in rewards], kl, entropy

    def best_reward(self, kl: float, prompts: list[str], objective: int = 0) -> float:
        """Returns the highest reward of any answers with this KL to the chain, in nats, by bisection."""
        weights = tuple(float(index == objective) for index in range(len(self.worth)))
        low, high = 0.0, 1.0
        while self.best(high, weights, prompts)[1] < kl and high < 64:
            high *= 2
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.best(middle, weights, prompts)[1] < kl else (low, middle)
        return self.best(high, weights, prompts)[0][objective]


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]
