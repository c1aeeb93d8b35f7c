"""What is wanted of positions: log-probabilities, perhaps a KL and a second moment, in blocks of what shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .logits import States

# On a CPU 8 MiB of fp32 logits, which stay in its cache: the fastest of those measured (docs/chunked-head.md).
# Elsewhere 256 MiB: an accelerator waits for launches, about 40 a block; KL and backward hold three at once.
_CPU_BLOCK, _ACCELERATOR_BLOCK = (1024, 2048), (4096, 16384)
_COLUMNS = 128  # blocks of the vocabulary begin at multiples of it, which is what fast matrix products ask for


def block_shape(device: str, vocabulary: int) -> tuple[int, int]:
    """Returns how many rows and columns a block of logits has on a type of device.

    On an accelerator the vocabulary is cut evenly: blocks of one shape ask for memory of one size.
    """
    if device == "cpu":
        return _CPU_BLOCK
    rows, columns = _ACCELERATOR_BLOCK
    pieces = -(-vocabulary // columns)
    return rows, -(-vocabulary // (pieces * _COLUMNS)) * _COLUMNS


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is wanted of M positions beside the log-probability of a token at each.

    Attributes:
        target: ``[M]`` int64, the tokens; one outside of the vocabulary gives NaN.
        reference: a frozen model's states at the same positions, taken as constants: adds "kl".
        second_moment: adds "second_moment".
        row_chunk, vocab_chunk: shape of a block of logits; 0: as the device asks for (``block_shape``).
    """

    target: Tensor
    reference: States | None = None
    second_moment: bool = False
    row_chunk: int = 0
    vocab_chunk: int = 0

    @property
    def names(self) -> list[str]:
        """The names of the values, in the order in which they are made."""
        return ["logps"] + ["kl"] * (self.reference is not None) + ["second_moment"] * self.second_moment

    def on(self, device: str, vocabulary: int) -> Wanted:
        """Returns the same with the blocks that this type of device asks for, where no shape was given."""
        rows, columns = block_shape(device, vocabulary)
        return replace(self, row_chunk=self.row_chunk or rows, vocab_chunk=self.vocab_chunk or columns)
