"""A file put together from shards: after a kill at any rename, and with another process at any moment of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignlab.answers import Answer, AnswerRow, Made, Shards, file_digest, made_beside, read_answers, write_answers

OF = {"step": "sample", "seed": 1}
COUNTS = {"answers": 5, "finished": 3, "unfinished": 2, "tokens": 5}


def row(number: int, **scores: float) -> AnswerRow:
    answer = Answer(f"answer {number}", [number], number % 2 == 0, scores=dict(scores))
    return AnswerRow(f"p{number}", "prompt", [1], "model", "engine", 1, [answer])


class Killed(BaseException):
    """What nothing catches, as a SIGKILL."""


def steps(output: Path, in_place: bool = False) -> Iterator[str]:
    """One process at five rows in shards of two; says what it is about to do."""
    made = Made(output.with_name("made.json"), {**OF, "answers": file_digest(output)} if in_place else OF)
    shards = Shards(made, output, 2, 5, in_place)
    yield "open"
    shards.open()
    yield "look"
    for numbers in shards.missing():
        yield "write"
        shards.write(numbers, [row(n, judge=n / 2) if in_place else row(n) for n in numbers])
    yield "assemble"
    assert shards.assemble({"prompts": 5})


def dies_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no process do anything from its ``moment``-th rename or deletion on; even moments fall before it."""
    count = [0]

    def guarded(plain: Any) -> Any:
        def ask(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if 2 * count[0] - 2 >= moment:
                raise Killed
            result = plain(*args, **options)
            if 2 * count[0] - 1 >= moment:
                raise Killed
            return result

        return ask

    monkeypatch.setattr(Path, "replace", guarded(Path.replace))
    monkeypatch.setattr(shutil, "rmtree", guarded(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", guarded(Path.unlink))


def listing(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_kill_at_any_rename(in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it or after it: the same work ends with the bytes of one that was left alone, and nothing beside them."""
    moment, killed, wanted = 0, 0, dict[str, bytes]()
    while True:
        folder = tmp_path / str(moment)
        folder.mkdir()
        if in_place:
            write_answers(folder / "a.jsonl", map(row, range(5)))
        with monkeypatch.context() as patch:
            dies_at(moment or 10**6, patch)
            try:
                list(steps(folder / "a.jsonl", in_place))
                left_alone = True
            except Killed:
                left_alone, killed = False, killed + 1
        scored = in_place and bool(next(read_answers(folder / "a.jsonl")).answers[0].scores)
        if not left_alone and not scored:  # of a file that is complete nobody begins anew
            list(steps(folder / "a.jsonl", in_place))
        if scored:
            shutil.rmtree(folder / "a.jsonl.parts", ignore_errors=True)
        wanted = wanted or listing(folder)
        assert listing(folder) == wanted, moment
        if left_alone and moment:
            break
        moment += 1
    assert killed == 15  # eight renames and deletions: after the first, before and after each of the others
    rows = list(read_answers(tmp_path / "0/a.jsonl"))
    assert rows == [row(n, judge=n / 2) if in_place else row(n) for n in range(5)]
    assert sorted(wanted) == [".a.jsonl.lock", "a.jsonl", *([] if in_place else ["made.json"])]
    if not in_place:
        assert json.loads(wanted["made.json"])["account"] == {"prompts": 5, **COUNTS}


@pytest.mark.parametrize("in_place", [False, True])
def test_two_at_once(in_place: bool, tmp_path: Path) -> None:
    """Whatever one is about to do, another begins and ends before it: both find the file whole, and it is the same."""
    wanted = None
    for moment in range(1, 7):
        folder = tmp_path / str(moment)
        folder.mkdir()
        if in_place:
            write_answers(folder / "a.jsonl", map(row, range(5)))
        for number, _ in enumerate(steps(folder / "a.jsonl", in_place)):
            if number == moment:
                list(steps(folder / "a.jsonl", in_place))
        wanted = wanted or listing(folder)
        assert listing(folder) == wanted, moment
    assert len(list(read_answers(tmp_path / "1/a.jsonl"))) == 5


def test_what_was_cleared_away_in_part_is_not_gone_on_with(tmp_path: Path) -> None:
    """Killed while the shards of a completed file were deleted: asked again of what it is now, it begins anew."""
    output = tmp_path / "a.jsonl"
    write_answers(output, map(row, range(5)))
    shards = Shards(Made(tmp_path / "m", {"answers": file_digest(output)}), output, 2, 5, in_place=True)
    shards.open()
    for numbers in shards.missing():
        shards.write(numbers, [row(n, judge=1.0) for n in numbers])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "close", lambda self: (self.folder / "0-2.jsonl").unlink())
        assert shards.assemble({})
    assert shards.folder.is_dir()
    again = Shards(Made(tmp_path / "m", {"answers": file_digest(output)}), output, 2, 5, in_place=True)
    again.open()
    assert again.missing() == [[0, 1], [2, 3], [4]]


def test_shards_of_other_work_are_named(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    Shards(made_beside(output, OF), output, 2, 5).open()
    with pytest.raises(ValueError, match=r"a.jsonl.parts holds shards of other answers \(other: seed\); delete it"):
        Shards(made_beside(output, {**OF, "seed": 2}), output, 2, 5).open()
