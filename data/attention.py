"""The sequences that attention runs a flat row of trees as, worked out from lengths alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

Span = tuple[int, int]


class AttentionPlan(NamedTuple):
    """How one flat row of trees is attended to as ``B`` plain causal sequences, their ends aligned.

    The first completion of a tree makes a sequence together with its prompt; of every other the queries are its own
    tokens and the keys are the prompt's, copied, and its own. With attention chunks a sequence is one chunk of that.
    Queries stay in row order; keys are gathered.

    Attributes:
        table: ``[2 (B + 1) + 2 T + 2 C]`` int32, for ``T`` tokens and ``C`` copied keys: where the queries of each
            sequence begin ``[B + 1]``, where its keys begin ``[B + 1]``, the token behind each gathered key
            ``[T + C]``, the gathered key that is a token's own ``[T]``, those that are copies ``[C]``. One tensor, so
            that one copy takes it to a device.
        tokens: ``T``.
        sequences: ``B``.
        longest_query: queries of the longest sequence.
        longest_key: keys of the sequence that has most.
    """

    table: torch.Tensor
    tokens: int
    sequences: int
    longest_query: int
    longest_key: int

    def parts(self) -> list[torch.Tensor]:
        """Returns the five parts of the table, in their order."""
        ends = self.sequences + 1
        copies = (self.table.shape[0] - 2 * ends - 2 * self.tokens) // 2
        return list(torch.split(self.table, [ends, ends, self.tokens + copies, self.tokens, copies]))


def attention_plan(
    trees: Sequence[Sequence[int]], chunk: int | None = None, table: torch.Tensor | None = None
) -> AttentionPlan:
    """Plans the attention of a flat row.

    Args:
        trees: tokens of the prompt and of each completion, tree after tree.
        chunk: positions of an attention chunk, where a layer has chunks.
        table: the plan's table where it is already made (and has come to a device), so that none is made again.
    """
    sequences = list(_sequences(trees, chunk))
    queries = [end - start for start, end, _ in sequences]
    keys = [sum(b - a for a, b in spans) for _, _, spans in sequences]
    if table is None:
        table = _table(sequences, queries, keys)
    return AttentionPlan(table, sum(queries), len(sequences), max(queries), max(keys))


def _sequences(trees: Sequence[Sequence[int]], chunk: int | None) -> Iterator[tuple[int, int, list[Span]]]:
    """Yields the queries of each sequence, and its keys, as spans of the row."""
    start = 0
    for prompt, *completions in trees:
        at, first, position = start, True, 0
        for length in [prompt + completions[0], *completions[1:]] if completions else [prompt]:
            position = 0 if first else prompt
            end = at + length
            query = at
            while query < end:  # one turn where there are no chunks
                stop = end if chunk is None else min(end, query + chunk - position % chunk)
                oldest = 0 if chunk is None else position // chunk * chunk
                if first:
                    spans = [(start + oldest, stop)]
                else:
                    own = at + max(oldest - prompt, 0)
                    spans = [(start + oldest, start + prompt), (own, stop)] if oldest < prompt else [(own, stop)]
                yield query, stop, spans
                position += stop - query
                query = stop
            at, first = end, False
        start = at


def _table(sequences: list[tuple[int, int, list[Span]]], queries: list[int], keys: list[int]) -> torch.Tensor:
    gathered = np.concatenate([np.arange(a, b) for _, _, spans in sequences for a, b in spans])
    ends = np.cumsum(keys)
    # The queries of a sequence are the last of its keys.
    own = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, queries, strict=True)])
    copied = np.ones(len(gathered), dtype=bool)
    copied[own] = False
    parts = [np.r_[0, np.cumsum(queries)], np.r_[0, ends], gathered, own, np.flatnonzero(copied)]
    return torch.from_numpy(np.concatenate(parts).astype(np.int32))
