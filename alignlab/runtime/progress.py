"""How far a run is, for people: one live line on a terminal, a plain line now and then in a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from tqdm.auto import tqdm

Shown = Literal["auto", "live", "lines", "none"]
Clock = Callable[[], float]
Say = Callable[[str], None]


def shown_as(asked: str = "auto", bars: bool = True, environment: Mapping[str, str] = os.environ) -> Shown:
    """Returns how progress is shown: "live" on a terminal; "lines" in a file, under Slurm and where bars are unwanted.

    Args:
        asked: "auto", or one of the others, which then is what it is.
        bars: False where ``disable_tqdm`` asks for none.
    """
    if asked != "auto":
        return asked  # type: ignore[return-value]
    watched = sys.stdout.isatty() and "SLURM_JOB_ID" not in environment and environment.get("TERM") != "dumb"
    return "live" if watched and bars else "lines"


def say(text: str) -> None:
    """Prints a line at once: who looks at a log waits for no buffer."""
    print(text, flush=True)


class Lines:
    """Says every so many seconds how far something is: how much is done, how fast, and how long it will take.

    Args:
        what: "training", say. total: how much there is to do. unit: of what, "steps". done: how much was before.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        seconds: float,
        done: int = 0,
        say: Say = say,
        clock: Clock = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.seconds, self.say, self.clock = what, total, unit, seconds, say, clock
        self.done = self.before = done
        self.since = self.last = clock()

    def update(self, count: int = 1) -> None:
        """Counts what was done since; says so where it is time."""
        self.done += count
        now = self.clock()
        if now - self.last < self.seconds or self.done == self.total:
            return
        self.last = now
        self.say(self.line(now - self.since))

    def line(self, seconds: float) -> str:
        """Returns the line, so many seconds after the beginning."""
        rate = (self.done - self.before) / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done} {self.unit}, {rate:.3g} a second"
        left = clock_time((self.total - self.done) / rate) if rate else "unknown time"
        share = self.done / max(self.total, 1)
        return f"{self.what}: {self.done} of {self.total} {self.unit} ({share:.0%}), {rate:.3g} a second, {left} left"

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: Any) -> None: ...


def bar(what: str, total: int | None, unit: str, shown: str, seconds: float = 30.0) -> Any:
    """Returns what shows how far something is, as ``shown_as`` says: a bar of tqdm, or ``Lines``; both are updated."""
    if shown == "live":
        return tqdm(total=total, desc=what, unit=f" {unit}", leave=False, dynamic_ncols=True)
    return Lines(what, total, unit, seconds if shown == "lines" else float("inf"))


def over(items: Iterable[Any], shown: Any) -> Iterator[Any]:
    """Yields items, each counted by a bar once it is done with."""
    with shown:
        for one in items:
            yield one
            shown.update(1)


def clock_time(seconds: float) -> str:
    """Returns a length of time as people read it: ``45 s``, ``3:05 min``, ``2:10 h``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60}:{minutes % 60:02} h"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
