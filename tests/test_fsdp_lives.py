"""Saving and resuming under FSDP2: the real trainer, transformers and accelerate on two ranks that shard on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_parts import common, sharded
from gpu_parts.sharded import MIDDLE, RUNS, STEPS, weights
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lives")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What two ranks saw of every run, whole and resumed: the same, or this fails."""
    seen: dict[str, Any] = sharded.launch(folder, list(RUNS), gpu=False)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_resumed_is_the_uninterrupted_one(name: str, folder: Path, found: dict[str, Any]) -> None:
    """To the last bit: losses, gradients' norms, evaluation, the state of the loss, and every weight saved."""
    whole, resumed = found[name], found[f"{name}_resumed"]
    assert whole["sharded"]
    assert len(set(whole["losses"])) == STEPS
    assert resumed == whole
    assert sharded.apart(folder / name, folder / f"{name}_resumed") == 0.0


@pytest.mark.parametrize("name", ["lora", "state"])
def test_the_saved_model_is_that_of_one_process(name: str, folder: Path, found: dict[str, Any]) -> None:
    """Losses and every weight within 1e-6 of one process's; a tied head is there once. (In bf16 ranks round.)"""
    alone = sharded.live(folder / f"{name}_alone", name, gpu=False)
    row = sharded.compared(folder, name, found, alone)
    assert float(row["losses from one process"]) < 1e-6
    assert float(row["weights from one process"]) < 1e-6


@pytest.mark.parametrize("name", RUNS)
def test_the_saved_model_is_whole_and_loads_by_itself(name: str, folder: Path, found: dict[str, Any]) -> None:
    """Also where checkpoints are in parts; every weight moved, further than those of one process differ."""
    start = common.make_model(common.make_config(RUNS[name].get("shape", "8B"), tiny=True), torch.device("cpu"))
    if name == "lora":
        assert max(float(value.abs().max()) for key, value in weights(folder / name).items() if "lora_B" in key) > 1e-4
        PeftModel.from_pretrained(start, str(folder / name))
        return
    loaded, before = AutoModelForCausalLM.from_pretrained(folder / name), start.state_dict()
    moved = {key: float((value - before[key]).abs().max()) for key, value in loaded.state_dict().items()}
    assert min(moved.values()) > 0
    assert max(moved.values()) > 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_says_what_it_is(name: str, folder: Path, found: dict[str, Any]) -> None:
    """Its manifest names every file, two ranks, and that it can be resumed; of parts also torch's index of them."""
    manifest = json.loads((folder / name / f"checkpoint-{MIDDLE}" / "manifest.json").read_text())
    assert (manifest["step"], manifest["ranks"], manifest["resumable"]) == (MIDDLE, 2, True)
    kept = {one for one in manifest["files"] if one.startswith("pytorch_model_fsdp")}
    parts = {f"pytorch_model_fsdp_0/{one}" for one in (".metadata", "__0_0.distcp", "__1_0.distcp")}
    assert kept == (parts if name == "parts" else {"pytorch_model_fsdp.bin"})
