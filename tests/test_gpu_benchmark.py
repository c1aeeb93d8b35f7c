"""The GPU's benchmark runs here as well, tiny and on the CPU, so that it cannot rot until a GPU is at hand."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_parts import attention, beside_trl, common, planned, qlora, sharded, step


def bench(output: Path, *only: str, seconds: float = 600.0) -> common.Bench:
    """The CPU as the benchmark's device, one repeat, only what is named."""
    return common.Bench(torch.device("cpu"), output, 1, only or None, time.monotonic() + seconds)


def test_operations_by_hand() -> None:
    """One layer of width 4, one head, feed-forward 8, vocabulary 10; a prompt of 3, completions of 2 and 1.

    Weights of the layer 2 * 16 + 2 * 16 + 3 * 4 * 8 = 160; T = 6 with us, 9 repeated; 3 scored positions of 40 each.
    Cells: 15 + 10 - 6 = 19 with us, 25 repeated; 12 * 4 operations each.
    """
    config = SimpleNamespace(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
        vocab_size=10,
    )
    ours = beside_trl._needed(config, [(3, 2, 1)], repeated=False, trained=True)
    theirs = beside_trl._needed(config, [(3, 2, 1)], repeated=True, trained=True)
    adapter = beside_trl._needed(config, [(3, 2, 1)], repeated=False, trained=False)
    assert ours == 6 * (160 * 6 + 120) + 48 * 19
    assert theirs == 6 * (160 * 9 + 120) + 48 * 25
    assert adapter == 4 * (160 * 6 + 120) + 48 * 19


def test_rows_have_the_lengths_drawn() -> None:
    """A word is a token, so rows have exactly the lengths that the operations are counted for."""
    profile, tokenizer = common.TINY_PROFILES["ultrafeedback"], common.make_tokenizer()
    rows = common.make_rows(profile, 5)
    found = [tuple(len(tokenizer(row[key]).input_ids) for key in ("prompt", "chosen", "rejected")) for row in rows]
    assert found == common.lengths(profile, 5)


def test_attention_errs_as_dense_attention_does(tmp_path: Path) -> None:
    """Part attention, in float32 here: the kernel is within 2e-6 of float64; times are there for both ways."""
    parts = [*attention.VARIANTS, "ultrafeedback"]
    rows = attention.run(bench(tmp_path, *parts))
    assert [row["what"] for row in rows] == parts
    assert all(float(row["error of the kernel"]) <= 2e-6 for row in rows[:6])
    assert all(0 < float(row["error of dense attention"]) <= 2e-6 for row in rows[:6])
    assert min(rows[6][f"ms {side}"] for side in ("kernel", "repeated prompts", "dense mask")) > 0


def test_packed_rows_are_right_in_both_dtypes(tmp_path: Path) -> None:
    """Part step: packed float32 within 1e-5 of padded; packed bf16 errs no more than 1.5 times as padded bf16."""
    rows = step.run(bench(tmp_path, "mistral, windows"))
    exact, half = rows
    assert exact["layout"] in ("flat", "rows")
    assert float(exact["log-probability: packed"]) < 1e-5
    assert float(exact["gradient: packed"]) < 1e-5
    for part in ("log-probability", "gradient"):
        assert float(half[f"{part}: packed"]) <= 1.5 * float(half[f"{part}: padded"])


@pytest.mark.slow
def test_beside_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part trl: both programs train the same rows with LoRA; the table has both and their ratio."""
    monkeypatch.setattr(beside_trl, "WARM_UP", 1)
    monkeypatch.setattr(beside_trl, "STEPS", 2)
    one = bench(tmp_path, "8B")
    rows = beside_trl.run(one, profile=True)
    assert [(row["shape"], row["lengths"]) for row in rows] == [("8B", lengths) for lengths in common.TINY_PROFILES]
    assert "aten::mm" in (tmp_path / "gpu_trl_8B_reasoning_alignlab.txt").read_text()
    for row in rows:
        ratio = row["alignlab pairs_per_second"] / row["trl pairs_per_second"]
        assert math.isclose(row["pairs_per_second ratio"], ratio, rel_tol=0.02)
    one.write("trl", rows)
    table = (tmp_path / "gpu_trl.md").read_text()
    assert f"torch {torch.__version__}" in table
    assert table.count("\n| ") == len(rows) + 2  # heading, line, rows


@pytest.mark.slow
def test_four_bit_and_planner(tmp_path: Path) -> None:
    """Parts qlora and planner: runs from saved models, as users have them; the planner's parts are there."""
    loaded = qlora.run(bench(tmp_path, "ultrafeedback"))
    assert [row["lengths"] for row in loaded] == ["ultrafeedback"]
    assert loaded[0]["pairs a second"] > 0
    found = planned.run(bench(tmp_path, "LoRA"))
    assert [row["config"] for row in found] == ["LoRA"]
    assert float(found[0]["planned GB"]) > 0


def test_what_no_time_is_left_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that runs out of seconds says which measurements it left; unknown names are refused."""
    assert step.run(bench(tmp_path, "llama", seconds=-1)) == []
    assert "left out for want of time: llama" in capsys.readouterr().out
    assert sharded.run(bench(tmp_path, "lora", seconds=-1)) == []
    assert "left out for want of time: fsdp lora" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--only: found camel, allowed llama"):
        step.run(bench(tmp_path, "camel"))
