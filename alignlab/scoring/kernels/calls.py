"""Counts the calls of attention, so that a model that never makes them is found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass
class AttentionCalls:
    """How often attention over trees was called within ``counted_calls``; a checkpointed layer calls it again.

    A compiled layer does not count: probe before compiling.
    """

    trees: int = 0


_counting: ContextVar[AttentionCalls | None] = ContextVar("attention_calls", default=None)


@contextmanager
def counted_calls() -> Iterator[AttentionCalls]:
    """Within it, calls of attention over trees are counted: a forward makes one for each attention layer."""
    calls = AttentionCalls()
    token = _counting.set(calls)
    try:
        yield calls
    finally:
        _counting.reset(token)


def count_call() -> None:
    """Says that attention over trees was called."""
    calls = None if torch.compiler.is_compiling() else _counting.get()
    if calls is not None:
        calls.trees += 1
