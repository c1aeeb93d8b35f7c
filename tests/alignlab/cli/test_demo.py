"""The demo in small: what it prepares, measures and prints, on a handful of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.answers import read_answers
from alignlab.cli import demo, demo_rounds
from alignlab.data import printable, toy
from alignlab.evaluation import sequence_kl
from alignlab.sampling import generate


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"DEMONSTRATIONS": 64, "PAIRS": 32, "HELD_OUT_PAIRS": 16, "HELD_OUT_PROMPTS": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_whole_demo_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage runs; the table, three answers before and after and the model's path are printed; twice in a row."""
    for _ in range(2):
        demo.main(["--output-dir", str(tmp_path), "--seed", "1"])
        printed = capsys.readouterr().out
    for words in ("preference accuracy", "true reward of greedy", "KL to the supervised start", str(tmp_path / "dpo")):
        assert words in printed.replace("\n", " ") or words in printed, words
    assert printed.count("before ") >= 3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dpo").num_parameters() > 1_000_000


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_rounds_of_the_demo_in_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a round, answers at the start and after the last round with their true rewards; torch's threads stay."""
    monkeypatch.setattr(demo_rounds, "PROMPTS", 8)
    monkeypatch.setattr(demo_rounds, "HELD_OUT", 4)
    whole = demo_rounds.demo_loop
    cut = {"samples": 4, "max_new_tokens": 8, "unfinished": "keep"}  # a model of four steps ends no answer
    monkeypatch.setattr(demo_rounds, "demo_loop", lambda *told: whole(*told) | {"sample": cut})
    threads = torch.get_num_threads()
    demo.main(["--rounds", "2", "--output-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [line[2] for line in printed.splitlines() if line.startswith("│ ") and line[2].isdigit()] == ["0", "1", "2"]
    for number, name in ((0, "start   "), (2, "round 2 ")):
        rows = list(read_answers(tmp_path / "rounds" / f"round-0{number}" / "watch" / "answers.jsonl"))
        for row in rows[:3]:
            question, answer = row.prompt[-1]["content"], row.answers[0]  # type: ignore[index]
            assert answer.scores["reward"] == toy.reward(question, answer.text)
            assert question in printed
            assert f"  {name} {answer.scores['reward']:+.1f}  {printable(answer.text)}"[:60] in printed
    assert str(tmp_path / "rounds" / "round-02" / "train") in printed.replace("\n", "")
    assert torch.get_num_threads() == threads


def test_one_thread_and_then_as_many_as_before() -> None:
    threads = torch.get_num_threads()
    with demo_rounds.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("small")
def test_kl_of_a_model_to_itself_is_zero(tmp_path: Path) -> None:
    demo.prepare(tmp_path, seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "untrained")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "untrained")
    samples = generate(model, tokenizer, [[{"role": "user", "content": "Which colour?"}]], sample=True, seed=0)
    assert sequence_kl(model, model, samples, tokenizer.pad_token_id).abs().max() < 1e-5
    other: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "untrained")
    with torch.no_grad():
        other.lm_head.weight.add_(torch.randn_like(other.lm_head.weight))
    assert sequence_kl(model, other, samples, tokenizer.pad_token_id).min() > 0.1
