"""Work on a file dealt to processes that may die: shards of rows, each of them whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignlab.checkpoints import write_whole

from .made import Made
from .rows import AnswerRow, read_answers, write_answers

_OF = "of.json"


class Shards:
    """The rows of one answers file, some to a shard, until all are there and the file is put together.

    Ranks, jobs of an array and processes that come later may all write shards; what one of them has written no other
    does again. A kill loses the shard that was being made. The file does not depend on who made what.

    Args:
        made: the manifest of the file: its ``of`` is that of the shards.
        output: the file. Shards lie in a folder beside it until it is whole.
        size: rows a shard. rows: of the file.
    """

    def __init__(self, made: Made, output: Path, size: int, rows: int) -> None:
        self.made, self.output, self.size, self.rows = made, output, size, rows
        self.folder = output.with_name(f"{output.name}.parts")

    def open(self) -> None:
        """Makes room for shards, or finds those of the same work; several processes may do it at once.

        Raises:
            ValueError: other work was begun there, or another file stands where this one is to be.
        """
        self.made.check_free(self.output)
        self.begin()

    def begin(self) -> None:
        """Makes room for shards beside a file that may be there, and be completed by them.

        Raises:
            ValueError: other work was begun there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock():
            known = self.folder / _OF
            if not known.is_file():
                write_whole(known, json.dumps(self.made.of, indent=1) + "\n")
                return
            found = json.loads(known.read_text(encoding="utf-8"))
        if found != self.made.of:
            names = [key for key in {**found, **self.made.of} if found.get(key) != self.made.of.get(key)]
            raise ValueError(
                f"--output: {self.folder} holds shards of other answers (other: {', '.join(names)}); delete it, "
                "or choose another file"
            )

    def missing(self, part: int = 0, parts: int = 1) -> list[list[int]]:
        """Returns the rows that are in no shard yet, in the portions that a shard takes.

        A portion holds the same rows whatever was done before and whoever does it, and goes to the same part of the
        processes: they need not tell one another anything.

        Raises:
            ValueError: there is no such part.
        """
        if not 0 <= part < parts:
            raise ValueError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
        done, left = self._done(), []
        for start in range(part * self.size, self.rows, parts * self.size):
            portion = [row for row in range(start, min(start + self.size, self.rows)) if row not in done]
            left += [portion] if portion else []
        return left

    def write(self, numbers: list[int], rows: list[AnswerRow]) -> None:
        """Writes one portion."""
        assert len(numbers) == len(rows)
        write_answers(self.folder / f"{'-'.join(map(str, _ranges(numbers)))}.jsonl", rows)

    def assemble(self, account: dict[str, Any]) -> bool:
        """Puts the file together and deletes the shards, if all are there; says whether the file is there.

        The manifest's account gets, beside what is given, the numbers of answers, of finished ones and of tokens.
        """
        if not self.folder.exists():
            return self.made.is_done()
        with self.lock():
            if self.made.is_done():
                pass
            elif len(self._done()) < self.rows:
                return False
            else:
                counts = self._put_together()
                self.made.finish([self.output], {**account, **counts})
        self.close()
        return True

    def take(self) -> bool:
        """Puts the file together in the place of the one that is there, if all shards are; whoever asked says so."""
        with self.lock():
            if len(self._done()) < self.rows:
                return False
            self._put_together()
        return True

    def lock(self) -> FileLock:
        """Returns what one process at a time may hold."""
        return FileLock(self.folder / ".lock")

    def close(self) -> None:
        """Deletes the shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _put_together(self) -> dict[str, Any]:
        """Writes the file; returns the numbers of its answers, and of those that each judge scored and did not."""
        counts: Counter[str] = Counter(answers=0, finished=0, unfinished=0, tokens=0)
        judged: dict[str, Counter[str]] = {}
        write_answers(self.output, self._in_order(counts, judged))
        return {**counts, **({"judged": {name: dict(one) for name, one in judged.items()}} if judged else {})}

    def _done(self) -> dict[int, tuple[Path, int]]:
        """Where each row lies that is there: its shard, and the line in it."""
        found: dict[int, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("[0-9]*.jsonl")):
            numbers = [int(one) for one in path.stem.split("-")]
            rows = [n for start, end in zip(numbers[::2], numbers[1::2], strict=True) for n in range(start, end)]
            found |= {row: (path, line) for line, row in enumerate(rows)}
        return found

    def _in_order(self, counts: Counter[str], judged: dict[str, Counter[str]]) -> Iterator[AnswerRow]:
        opened: tuple[Path, list[AnswerRow]] | None = None
        for _, (path, line) in sorted(self._done().items()):
            if opened is None or opened[0] != path:
                opened = path, list(read_answers(path))
            row = opened[1][line]
            for one in row.answers:
                counts["answers"] += 1
                counts["finished"] += one.finished is True
                counts["unfinished"] += one.finished is False
                counts["tokens"] += len(one.ids or ())
                for name, score in one.scores.items():
                    judged.setdefault(name, Counter(judged=0, unjudged=0))[
                        "unjudged" if score is None else "judged"
                    ] += 1
            yield row


def _ranges(numbers: list[int]) -> list[int]:
    """Returns 3,4,5,9 as the bounds 3,6,9,10: names of shards say which rows they hold."""
    bounds: list[int] = []
    for one in numbers:
        if bounds and bounds[-1] == one:
            bounds[-1] = one + 1
        else:
            bounds += [one, one + 1]
    return bounds


def array_part(environment: dict[str, str] | None = None) -> tuple[int, int]:
    """Returns which job of a Slurm array this is, and of how many; (0, 1) outside of one."""
    found = os.environ if environment is None else environment
    if "SLURM_ARRAY_TASK_ID" not in found:
        return 0, 1
    first = int(found.get("SLURM_ARRAY_TASK_MIN", "0"))
    step = int(found.get("SLURM_ARRAY_TASK_STEP", "1"))
    return (int(found["SLURM_ARRAY_TASK_ID"]) - first) // step, int(found.get("SLURM_ARRAY_TASK_COUNT", "1"))
