"""Every answer of a file scored: by rewards, verifiers and comparisons; unjudged is null; kills and failures count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import make_rows

from alignlab.answers import Answer, AnswerRow, Made, made_beside, read_answers, write_answers
from alignlab.cli import main
from alignlab.judges import Judge, build_judge, judge_answers
from alignlab.judges.function import FunctionJudge

TEXTS = [["a", "bb", "ccc"], ["dddd", "a", "a"], ["bb"]]


def rows_of(texts: list[list[str]]) -> list[AnswerRow]:
    return [
        AnswerRow(f"{n:032x}", row["prompt"], [5, 6], "m", "transformers", 1, [Answer(text, [7]) for text in some])
        for n, (row, some) in enumerate(zip(make_rows(len(texts)), texts, strict=True))
    ]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    write_answers(path, rows_of(TEXTS))
    made_beside(path, {"step": "sample"}).finish([path], {"prompts": 3})
    return path


def scores(path: Path, name: str) -> list[list[float | None]]:
    return [[one.scores[name] for one in row.answers] for row in read_answers(path)]


def test_rewards_of_answers() -> None:
    judge = FunctionJudge(lambda prompt, completion: len(completion))
    assert judge.scores("p", ["a", "ccc", "bb"]) == [1.0, 3.0, 2.0]


def test_win_rates_of_answers() -> None:
    """The longer wins: "ccc" beats both others; "a" twice ties with itself, which nobody asks about."""
    asked = []

    def longer(prompt: str, one: str, other: str) -> float:
        asked.append((one, other))
        return 0.5 if len(one) == len(other) else float(len(one) > len(other))

    judge = FunctionJudge(longer)
    assert judge.scores("p", ["a", "ccc", "bb"]) == [0.0, 1.0, 0.5]
    assert len(asked) == 6  # three couples, both orders
    assert judge.scores("p", ["a", "a", "bb"]) == [0.25, 0.25, 1.0]
    assert judge.scores("p", ["a"]) == [None]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1"])
def test_what_is_no_number_is_unjudged_and_counted(value: Any) -> None:
    judge = FunctionJudge(lambda prompt, completion: value if completion == "bad" else True)
    assert judge.scores("p", ["good", "bad"]) == [1.0, None]
    assert judge.usage() == {"failures": 1, "first_failure": f"it returned {value!r}"}


def test_a_verifier_that_raises_leaves_the_answer_unjudged() -> None:
    judge = FunctionJudge(lambda prompt, completion: 1 / len(completion))
    assert judge.scores("p", ["aa", ""]) == [0.5, None]
    assert judge.usage()["first_failure"] == "ZeroDivisionError: division by zero"


def test_scores_are_added_in_place(answers: Path) -> None:
    """Equal texts are judged once; a second judge leaves the first one's scores; the sampler's manifest stays true."""
    seen: list[str] = []

    def length(prompt: str, completion: str) -> float:
        seen.append(completion)
        return float(len(completion))

    assert judge_answers(answers, {"length": FunctionJudge(length)})
    assert scores(answers, "length") == [[1.0, 2.0, 3.0], [4.0, 1.0, 1.0], [2.0]]
    assert seen == ["a", "bb", "ccc", "dddd", "a", "bb"]
    assert judge_answers(answers, {"letters": FunctionJudge(lambda p, c: float(len(set(c))))})
    assert scores(answers, "letters") == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0]]
    assert scores(answers, "length")[0] == [1.0, 2.0, 3.0]
    made = made_beside(answers, {"step": "sample"})
    assert made.is_done()
    counts = {"judged": 7, "unjudged": 0}
    assert made.account == {"prompts": 3, "judged": {"length": counts, "letters": counts}}
    assert not answers.with_name("answers.jsonl.parts").exists()


def test_unjudged_is_null_and_can_be_asked_again(answers: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def verify(prompt, answer):\n    return None if answer == 'a' else len(answer)\n")
    words = ["judge", str(answers), "--judge", f"{source}:verify", "--name", "check"]
    assert main(words) == 0
    assert scores(answers, "check") == [[None, 2.0, 3.0], [4.0, None, None], [2.0]]
    assert b'"check":null' in answers.read_bytes()
    cost = json.loads(answers.with_name("answers.jsonl.cost.json").read_text())
    assert cost == {"0.0": {"check": {"failures": 2, "first_failure": "it returned None"}}}
    source.write_text("def verify(prompt, answer):\n    return 1.0 * len(answer)\n")
    assert main([*words, "--again"]) == 2  # another function: not the same judge


def test_the_same_name_is_the_same_judge(answers: Path) -> None:
    class Other(FunctionJudge):
        def identity(self) -> str:
            return "another"

    judge_answers(answers, {"one": FunctionJudge(lambda p, c: 1.0)})
    with pytest.raises(ValueError, match=r"the scores called 'one' are another judge's \(.*, and not another\)"):
        judge_answers(answers, {"one": Other(lambda p, c: 1.0)})


def test_asked_again_only_what_is_missing_is_judged(answers: Path) -> None:
    lazy = FunctionJudge(lambda p, c: None if c == "a" else 1.0)
    eager = FunctionJudge(lambda p, c: 9.0)
    lazy.identity = eager.identity = lambda: "the same"  # type: ignore[method-assign]
    judge_answers(answers, {"one": lazy})
    judge_answers(answers, {"one": eager})
    assert scores(answers, "one")[0] == [None, 1.0, 1.0]
    judge_answers(answers, {"one": eager}, again=True)
    assert scores(answers, "one") == [[9.0, 1.0, 1.0], [1.0, 9.0, 9.0], [1.0]]


def test_a_kill_loses_a_shard(tmp_path: Path) -> None:
    """40 prompts in shards of 16: killed in the second, it judges 24 prompts more."""
    answers, seen = tmp_path / "many.jsonl", list[str]()
    write_answers(answers, rows_of([[f"{n}"] for n in range(40)]))
    output = tmp_path / "judged.jsonl"

    def dies(prompt: str, completion: str) -> float:
        seen.append(completion)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return float(completion)

    judge = FunctionJudge(dies)
    with pytest.raises(KeyboardInterrupt):
        judge_answers(answers, {"one": judge}, output=output)
    assert not output.exists()
    assert judge_answers(answers, {"one": judge}, output=output)
    assert len(seen) == 20 + 24
    assert scores(output, "one") == [[float(n)] for n in range(40)]
    assert judge_answers(answers, {"one": judge}, output=output)  # done
    assert len(seen) == 44
    assert made_beside(output, {}).account["judged"] == {"one": {"judged": 40, "unjudged": 0}}


def test_a_judge_that_judges_nothing_stops(answers: Path) -> None:
    judge = FunctionJudge(lambda p, c: 1 / 0, "mine")
    with pytest.raises(ValueError, match="mine judged none of 7 answers: ZeroDivisionError: division by zero"):
        judge_answers(answers, {"one": judge})
    assert [row.answers[0].scores for row in read_answers(answers)] == [{}] * 3


def test_a_function_is_known_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def one(prompt, answer):\n    return 1.0\n")
    first = build_judge(f"{path}:one").identity()
    path.write_text("def one(prompt, answer):\n    return 2.0\n")
    assert build_judge(f"{path}:one").identity() != first
    assert isinstance(build_judge(f"{path}:one"), Judge)


def test_a_manifest_that_is_no_longer_true_is_not_done(answers: Path) -> None:
    answers.write_bytes(answers.read_bytes() + b"\n")
    made = Made(answers.with_name("answers.jsonl.made.json"), {"step": "sample"})
    assert not made.is_done()
    assert made.damages() == [f"{answers} is not what was written"]


def test_scores_that_nobody_signed_are_no_judges(answers: Path) -> None:
    """They would pass for the judge's own, and nothing would be judged."""
    rows = list(read_answers(answers))
    for row in rows:
        for one in row.answers:
            one.scores["rm"] = 0.5
    write_answers(answers, rows)
    with pytest.raises(ValueError, match="has scores called 'rm', and nothing says whose they are; choose another"):
        judge_answers(answers, {"rm": FunctionJudge(lambda p, c: 1.0)})


def test_a_comparison_that_fails_leaves_the_others() -> None:
    """Of a, b, c the comparisons with b raise: b is unjudged, and a and c have the outcome of theirs."""

    def compare(prompt: str, one: str, other: str) -> float:
        if "b" in (one, other):
            raise RuntimeError("no word on b")
        return float(one < other)

    judge = FunctionJudge(compare)
    assert judge.scores("p", ["a", "b", "c"]) == [1.0, None, 0.0]
    assert judge.usage() == {"failures": 2, "first_failure": "RuntimeError: no word on b"}


def test_a_verifiers_boolean_of_numpy_is_one_of_ours() -> None:
    assert FunctionJudge(lambda p, c: np.bool_(c == "a")).scores("p", ["a", "b"]) == [1.0, 0.0]  # type: ignore[arg-type,return-value]
