"""A run is planned for the machine it is on: activations are checkpointed where it would not fit without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignlab.config.run import RunConfig, load_config
from alignlab.planner.fitting import plan
from alignlab.planner.memory import GB
from alignlab.planner.resolve import resolve
from alignlab.run.machine import on_machine
from alignlab.runtime.machine import Machine

GPU = Machine("cuda", "a GPU", bf16=True, tf32=True, memory=80.0)


def config(model_path: Path, *words: str) -> RunConfig:
    given = ["--model.name_or_path", str(model_path), "--data.train", "pairs.jsonl", "--max_length", "128"]
    return load_config("dpo.yaml", [*given, *words])


def test_checkpointing_is_on_exactly_where_the_plan_without_it_does_not_fit(model_path: Path) -> None:
    """The border is the planned peak itself, to the byte."""
    without = plan(config(model_path, "--gradient_checkpointing", "false"), 1, 80.0).estimate.peak / GB
    found, reasons = {}, {}
    for memory in (without, without - 1e-9):
        resolved, said = resolve(config(model_path), replace(GPU, memory=memory))
        found[memory], reasons[memory] = resolved.training["gradient_checkpointing"], said[-1]
    assert list(found.values()) == [False, True]
    assert f"planned without: {without:.1f} GB, fits" in reasons[without]
    assert "does not fit" in reasons[without - 1e-9]
    assert (
        plan(config(model_path), 1, without - 1e-9).estimate.peak < plan(config(model_path), 1, without).estimate.peak
    )


def test_everything_is_decided_and_written_as_it_was_decided(model_path: Path, caplog: Any) -> None:
    """One line says it all; what stands in the resolved config is what runs, and says no "auto" any more."""
    caplog.set_level("INFO")
    quantised = config(model_path, "--model.load_in_4bit", "true", "--peft.r", "4")
    resolved = on_machine(quantised, GPU)
    assert [resolved.training[name] for name in ("bf16", "float32_matmul_precision", "gradient_checkpointing")] == [
        True,
        "high",
        False,
    ]
    assert resolved.model.bnb_4bit_compute_dtype == "bfloat16"
    (line,) = [one.getMessage() for one in caplog.records if one.name == "alignlab.run.machine"]
    assert line.startswith("a GPU: model.bnb_4bit_compute_dtype: bfloat16; bf16: true (the device has it); float32")
    assert load_config({**resolved.to_dict()}) == resolved
    assert on_machine(resolved, Machine()) == resolved, "what is decided stays, on another machine too"


def test_on_a_cpu_nothing_is_planned_and_nothing_changes(tmp_path: Path) -> None:
    """Not even the model is looked for."""
    resolved, said = resolve(config(tmp_path / "nowhere"), Machine())
    assert [resolved.training[name] for name in ("bf16", "float32_matmul_precision", "gradient_checkpointing")] == [
        False,
        None,
        False,
    ]
    assert said[-1] == "gradient_checkpointing: false (no accelerator)"


def test_a_run_that_cannot_be_planned_takes_less_memory(tmp_path: Path) -> None:
    resolved, said = resolve(config(tmp_path / "nowhere"), GPU)
    assert resolved.training["gradient_checkpointing"] is True
    assert said[-1].startswith("gradient_checkpointing: true (not planned: ")


@pytest.mark.parametrize("value", ["true", "false"])
def test_what_is_said_stays(value: str, model_path: Path) -> None:
    words = ["--gradient_checkpointing", value, "--bf16", value]
    resolved, said = resolve(config(model_path, *words), replace(GPU, memory=0.1))
    assert [resolved.training[name] for name in ("gradient_checkpointing", "bf16")] == [value == "true"] * 2
    assert said == ["float32_matmul_precision: high (TF32 for what stays float32)"]
