"""How large the blocks of logits are: tuned sizes on a CPU, few launches and bounded memory on an accelerator."""

from __future__ import annotations

import pytest
import torch
from kernel_counts import head_counts

from alignlab.scoring.wanted import Wanted, block_shape


def test_a_cpu_keeps_the_blocks_that_are_fastest_there() -> None:
    assert block_shape("cpu", 1000) == block_shape("cpu", 262_144) == (1024, 2048)


@pytest.mark.parametrize(
    ("vocabulary", "columns"), [(1, 128), (16_384, 16_384), (16_385, 8320), (128_256, 16_128), (151_936, 15_232)]
)
def test_an_accelerator_cuts_the_vocabulary_evenly(vocabulary: int, columns: int) -> None:
    """As few blocks of at most 16,384 columns as do, of one size, a multiple of 128: 16,385 = 8,320 + 8,065."""
    assert block_shape("cuda", vocabulary) == (4096, columns)
    assert -(-vocabulary // columns) == -(-vocabulary // 16_384)


def test_a_shape_that_was_given_stays() -> None:
    sized = Wanted(torch.zeros(1), row_chunk=3).on("cuda", 1000)
    assert (sized.row_chunk, sized.vocab_chunk) == (3, 1024)


@pytest.mark.parametrize(("kl", "operators"), [(False, 351), (True, 552)])
def test_the_head_of_a_large_vocabulary_asks_for_few_kernels(kl: bool, operators: int) -> None:
    """128,256 tokens, 4,096 positions, width 4,096, bf16, trained: at most 600 kernels and 1 GB beside the gradients.

    The exact number is what docs/results/head_counts.csv says.
    """
    found = head_counts(kl=kl)
    assert found["operators"] == operators <= 600
    assert found["extra_megabytes"] <= 1000
