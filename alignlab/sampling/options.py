"""How answers are drawn, and the seed of each."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How answers are drawn.

    Attributes:
        samples: answers a prompt. max_new_tokens: of an answer.
        temperature, top_p, top_k: what bends the distribution; by default nothing does, and then the answers are those
            of the model itself, as a KL or an on-policy loss takes them to be. temperature: 0 decodes greedily.
            top_k: 0 for none.
        seed: of all answers together. round: of a loop; every round draws others.
        batch_size: answers at a time. It changes no answer, nor what is written of it.
    """

    samples: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    round: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        least = {"samples": 1, "max_new_tokens": 1, "top_k": 0, "round": 1, "batch_size": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}: expected at least {smallest}, found {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 (greedy) or more, found {self.temperature}")
        if self.greedy and self.samples > 1:
            raise ValueError(f"samples: at temperature 0 all answers to a prompt are one; found {self.samples}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, found {self.top_p}")

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is taken, and nothing drawn."""
        return self.temperature == 0

    def seed_of(self, prompt_id: str, sample: int) -> int:
        """Returns the seed of one answer: 63 bits of a hash over seed, round, prompt and the answer's number.

        ``row * samples + k`` would draw the answers of one round again in the next, and move with the rows.
        """
        text = f"{self.seed} {self.round} {prompt_id} {sample}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def of(self) -> dict[str, Any]:
        """Returns what answers depend on."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}
