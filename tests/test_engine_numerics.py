"""Two real ranks: the reference is scored exactly as each engine computes in training, and its scores say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import engine_ranks
import pytest
from launching import TORCHRUN, launch
from making import make_model, make_tokenizer

HALF = {"bf16": True, "max_steps": 2, "learning_rate": 1e-5, "reference_tolerance": 1.0}
LORA = {"peft": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}}
DEEP = {"model": {"name_or_path": "deep"}}
SHARDED = {"reference_deepspeed": "zero3.json"}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_deep": DEEP,
    "ddp_live": {"reference": "live"},
    "ddp_sharded": {"reference": "live", **SHARDED},
    "zero2": {"deepspeed": "zero2.json"},
    "zero2_deep": {"deepspeed": "zero2.json", **DEEP},
    "zero2_live": {"deepspeed": "zero2.json", "reference": "live"},
    "zero2_lora": {"deepspeed": "zero2.json", **LORA},
    "zero2_autocast": {"deepspeed": "autocast", "bf16": False},
    "zero3": {"deepspeed": "zero3.json"},
    "zero3_sharded": {"deepspeed": "zero3.json", "reference": "live", **SHARDED},
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of every run, one after the other on the same two ranks; each has a score cache of its own."""
    folder = tmp_path_factory.mktemp("numerics")
    engine_ranks.prepare(folder)
    deep = make_model(0, num_hidden_layers=16, hidden_size=64, intermediate_size=128, initializer_range=0.05)
    deep.save_pretrained(folder / "deep")
    make_tokenizer().save_pretrained(folder / "deep")
    zero = {"stage": 2}
    batch = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    autocast = {**batch, "zero_optimization": zero, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    (folder / "autocast.json").write_text(json.dumps(autocast))
    runs = []
    for name, changes in RUNS.items():
        found = {**HALF, **changes, "of": "dpo", "name": name, "score_cache_dir": str(folder / "scores" / name)}
        if found.get("deepspeed") == "autocast":
            found["deepspeed"] = str(folder / "autocast.json")
        runs.append(found)
    launch(TORCHRUN, folder, folder / "out", runs)
    return folder


def first_step(folder: Path, name: str) -> dict[str, float]:
    history = json.loads((folder / "out" / name / "trainer_state.json").read_text())["log_history"]
    first: dict[str, float] = history[0]
    return first


def fingerprint(folder: Path, name: str) -> str:
    (found,) = (one.parent.name for one in (folder / "scores" / name).glob("*/meta.json"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_policy_and_reference_agree_at_the_first_step(name: str, launched: Path) -> None:
    """Both are one model, so the loss of DPO is log 2, in half precision too, however deep the model is."""
    assert first_step(launched, name)["loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, changes in RUNS.items() if changes.get("reference") == "live"])
def test_a_live_reference_computes_the_very_same_numbers(name: str, launched: Path) -> None:
    """It scores the policy's own batches, so before the first step every reward is 0, to the last bit."""
    first = first_step(launched, name)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0.0, 0.0)


@pytest.mark.slow
def test_scores_are_shared_where_engines_compute_alike_and_only_there(launched: Path) -> None:
    """Half weights are the same at every ZeRO stage, with an adapter that is off too; autocast is another matter."""
    autocast, half = fingerprint(launched, "ddp"), fingerprint(launched, "zero2")
    assert autocast != half
    assert fingerprint(launched, "ddp_deep") != fingerprint(launched, "zero2_deep")
    assert fingerprint(launched, "zero2_autocast") == autocast
    assert fingerprint(launched, "zero3") == fingerprint(launched, "zero2_lora") == half
