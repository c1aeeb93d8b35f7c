"""What is wanted of positions: log-probabilities, perhaps a KL and a second moment, in blocks of what shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .logits import States

ROW_CHUNK, VOCAB_CHUNK = 1024, 2048  # 8 MiB of fp32 logits: the fastest of those measured (docs/chunked-head.md)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is wanted of M positions beside the log-probability of a token at each.

    Attributes:
        target: ``[M]`` int64, the tokens; one outside of the vocabulary gives NaN.
        reference: a frozen model's states at the same positions, taken as constants: adds "kl".
        second_moment: adds "second_moment".
        row_chunk, vocab_chunk: shape of a block of logits.
    """

    target: Tensor
    reference: States | None = None
    second_moment: bool = False
    row_chunk: int = ROW_CHUNK
    vocab_chunk: int = VOCAB_CHUNK

    @property
    def names(self) -> list[str]:
        """The names of the values, in the order in which they are made."""
        return ["logps"] + ["kl"] * (self.reference is not None) + ["second_moment"] * self.second_moment
