"""Work on a file dealt to processes that may die: shards of rows, each of them whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignlab.checkpoints import remove_asides, write_whole

from .made import Made, alone_with, file_digest, unlike
from .rows import AnswerRow, read_answers, write_answers

_OF = "of.json"


class Shards:
    """The rows of one answers file, some to a shard, until all are there and the file is put together.

    Ranks, jobs of an array and processes that come later may all write shards; what one of them has written no other
    does again. A kill loses the shard that was being made. The file does not depend on who made what.

    Where the shards' folder is not there, either nothing was begun or the file is whole: both change under a lock that
    lies beside the file and is never deleted.

    Args:
        made: the manifest of the file: its ``of`` is that of the shards.
        output: the file. Shards lie in a folder beside it until it is whole.
        size: rows a shard. rows: of the file.
        in_place: the file is there, and is to be completed; its manifest is not touched.
    """

    def __init__(self, made: Made, output: Path, size: int, rows: int, in_place: bool = False) -> None:
        self.made, self.output, self.size, self.rows, self.in_place = made, output, size, rows, in_place
        self.folder = output.with_name(f"{output.name}.parts")

    def open(self) -> None:
        """Makes room for shards, or finds those of the same work; several processes may do it at once.

        Raises:
            ValueError: other work was begun there, or another file stands where this one is to be.
        """
        with alone_with(self.output):
            for path in (self.output, self.made.manifest):
                remove_asides(path)
            begun = self._begun()
            if "becomes" in begun and begun["becomes"] == file_digest(self.output):  # killed while it was cleared away
                begun = {}
            if not self.in_place:
                if self.made.is_done():
                    return self.close()
                self.made.check_free(self.output)
            if not begun:
                self.close()
                self.folder.mkdir(parents=True)
                write_whole(self.folder / _OF, json.dumps({"of": self.made.of}, indent=1) + "\n")
            elif begun["of"] != self.made.of:
                raise ValueError(
                    f"--output: {self.folder} holds shards of other answers (other: "
                    f"{', '.join(unlike(begun['of'], self.made.of))}); delete it, or choose another file"
                )

    def missing(self, part: int = 0, parts: int = 1) -> list[list[int]]:
        """Returns the rows that are in no shard yet, in the portions that a shard takes; none where the file is whole.

        A portion holds the same rows whatever was done before and whoever does it, and goes to the same part of the
        processes: they need not tell one another anything.

        Raises:
            ValueError: there is no such part.
        """
        if not 0 <= part < parts:
            raise ValueError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
        with alone_with(self.output):
            if self.is_whole():
                return []
            done = self._done()
        left = list[list[int]]()
        for start in range(part * self.size, self.rows, parts * self.size):
            portion = [row for row in range(start, min(start + self.size, self.rows)) if row not in done]
            left += [portion] if portion else []
        return left

    def write(self, numbers: list[int], rows: list[AnswerRow]) -> None:
        """Writes one portion; not where another process, which had it too, has put the file together."""
        assert len(numbers) == len(rows)
        with alone_with(self.output):
            if not self.is_whole():
                write_answers(self.folder / f"{'-'.join(map(str, _ranges(numbers)))}.jsonl", rows)

    def assemble(self, account: dict[str, Any]) -> bool:
        """Puts the file together and deletes the shards, if all are there; says whether the file is whole.

        The manifest's account gets, beside what is given, the numbers of answers, of finished ones and of tokens.
        """
        with alone_with(self.output):
            if self.is_whole():
                return True
            if len(self._done()) < self.rows:
                return False
            counts, judged = _counters()
            write_answers(
                self.output,
                self._in_order(counts, judged),
                lambda aside: self._announce(aside, {**account, **_told(counts, judged)}),
            )
            self.close()
        return True

    def is_whole(self) -> bool:
        """True where the file was put together since ``open``."""
        return not self.folder.is_dir()

    def close(self) -> None:
        """Deletes the shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _announce(self, aside: Path, account: dict[str, Any]) -> None:
        """Says what the file will be, before it is: a kill in between leaves nothing unexplained."""
        if self.in_place:
            becomes = {"of": self.made.of, "becomes": file_digest(aside)}
            write_whole(self.folder / _OF, json.dumps(becomes, indent=1) + "\n")
        else:
            self.made.announce(self.output, aside, account)

    def _begun(self) -> dict[str, Any]:
        """Returns what work the shards are of; empty where there are none."""
        path = self.folder / _OF
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

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


def _counters() -> tuple[Counter[str], dict[str, Counter[str]]]:
    return Counter(answers=0, finished=0, unfinished=0, tokens=0), {}


def _told(counts: Counter[str], judged: dict[str, Counter[str]]) -> dict[str, Any]:
    """Returns the numbers of answers, and of those that each judge scored and did not."""
    return {**counts, **({"judged": {name: dict(one) for name, one in judged.items()}} if judged else {})}


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
