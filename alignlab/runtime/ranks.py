"""What ranks tell one another outside of a training step: rank 0's answer, everybody's findings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def rank_and_ranks() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def workers_of_a_rank() -> int:
    """Returns how many processes a rank may start: the cores of the machine, divided by its ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_main() -> bool:
    """True on rank 0."""
    return rank_and_ranks()[0] == 0


def wait_for_all() -> None:
    """Returns once every rank is here."""
    if rank_and_ranks()[1] > 1:
        dist.barrier()


def from_main(ask: Callable[[], T]) -> T:
    """Returns rank 0's answer on every rank; the others do not ask. What rank 0 raises is raised everywhere."""
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return ask()
    told: list[Any] = [None, None]
    if rank == 0:
        try:
            told[0] = ask()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return cast(T, told[0])


def gathered(value: T) -> list[T]:
    """Returns every rank's value, in the order of ranks, on every rank."""
    ranks = rank_and_ranks()[1]
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    dist.all_gather_object(values, value)
    return values
