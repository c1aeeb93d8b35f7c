"""The demo in small: what it prepares, measures and prints, on a handful of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.cli import demo
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
