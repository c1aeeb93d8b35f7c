"""Work shared out over processes: nothing that comes out depends on how many there are."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from making import make_rows, make_tokenizer

from alignlab.data import DataOptions, prepare
from alignlab.data.prepare import ROWS
from alignlab.data.workers import in_order


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four chunks of rows: good, broken, equal, of rare columns, without the group that others have."""
    chance = random.Random(3)
    rows: list[dict[str, Any]] = make_rows(3300)
    for number, row in enumerate(rows):
        row["weight" if number % 5 else "margin"] = number % 3 + 1
        if number % 7:
            row["group"] = chance.choice("abc")
        if number % 501 == 0:
            del row["chosen"]
        if number % 777 == 0:
            row["prompt"] = rows[number - 1]["prompt"]
        if number % 1999 == 0:
            row["rewards_chosen"] = {"good": number}
            row["rewards_rejected"] = {"bad" if number else "good": 0}
        if number % 1700 == 0:
            row[f"extra {number}"] = 1
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"broken\n')
    return path


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_the_same_bytes_report_and_rejected_rows_for_any_number(kind: Any, source: Path, tmp_path: Path) -> None:
    found = []
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        rejected = folder / "rejected_rows.jsonl"
        options = DataOptions(
            kind=kind, mismatched=kind == "labelled", max_length=24, on_bad_row="skip", rejected_rows=rejected
        )
        given = [{"path": str(source), "weight": 1.5}, str(source)]
        report = prepare(given, make_tokenizer(), options, 1, False, workers, folder).report
        found.append(((folder / ROWS).read_bytes(), report, rejected.read_text()))
        assert sorted(path.name for path in folder.iterdir()) == ["rejected_rows.jsonl", ROWS]
    assert found[0] == found[1] == found[2]
    _, report, rejected_rows = found[0]
    assert report.rows_rejected == len(rejected_rows.splitlines())
    reasons = [json.loads(line)["reason"] for line in rejected_rows.splitlines()]
    assert reasons[0] == "chosen is missing"
    assert reasons.count("group is missing, and other rows have one") > 900
    assert any("names bad; earlier rows named" in reason or "group" in reason for reason in reasons)


def test_errors_are_those_of_the_first_rows(source: Path, tmp_path: Path) -> None:
    told = set()
    for workers in (1, 2, 4):
        with pytest.raises(ValueError, match="rows are bad") as error:
            prepare(str(source), make_tokenizer(), DataOptions(), 0, False, workers, tmp_path)
        told.add(str(error.value))
    assert len(told) == 1
    assert f"{source}:1: chosen is missing" in told.pop()


def test_results_come_in_order_and_in_time() -> None:
    """Of many items a few are taken ahead, not all: the source of a million rows is not read into memory."""
    taken: list[int] = []

    def items() -> Any:
        for number in range(60):
            taken.append(number)
            yield number

    results = in_order(lambda number: number * number, items(), 2)
    assert next(results) == 0
    assert len(taken) < 12
    assert list(results) == [number * number for number in range(1, 60)]


def test_what_work_raises_is_raised_and_a_dead_worker_is_named() -> None:
    def work(number: int) -> int:
        if number == 7:
            raise ValueError("row 7 is not to be had")
        if number == 11:
            os._exit(1)
        return number

    with pytest.raises(ValueError, match="row 7 is not to be had"):
        list(in_order(work, range(9), 2))
    with pytest.raises(ValueError, match="data_workers: one of 2 workers died while it prepared rows"):
        list(in_order(work, range(8, 20), 2))
