"""Work shared out over processes, with results in the order of the work."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[Any], Any]  # of a worker; it came with the fork, or was pickled once


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields ``work(item)`` for each item, in order, made by so many processes; what the work raises is raised here.

    A few items only, or one worker, are worked on in this process. At most ``2 * workers + 2`` items wait in memory.

    Raises:
        ValueError: a worker died, for want of memory most likely.
    """
    given = iter(items)
    first = list(islice(given, 2))
    if workers < 2 or len(first) < 2:
        yield from map(work, chain(first, given))
        return
    # Forked, a worker has tokenizer and template without loading anything; it touches no model and no accelerator.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        try:
            for item in chain(first, given):
                waiting.append(pool.submit(_run, item))
                if len(waiting) > 2 * workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"data_workers: one of {workers} workers died while it prepared rows, for want of memory perhaps; "
                "fewer workers take less"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the parent are gone, and the cores are the workers'
    _work = work
    gc.freeze()  # what came with the fork lives on: looking through it again and again would copy its pages


def _run(item: Any) -> Any:
    return _work(item)
