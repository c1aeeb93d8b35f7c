"""The demo's config under DeepSpeed's launcher, on two real ranks; ``test_engines.py`` compares engines."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launching import BIN, DEEPSPEED, with_port
from transformers import AutoModelForCausalLM

from alignlab.cli.demo import prepare

ROOT = Path(__file__).parents[1]


def launch(command: list[str], config: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Runs a launcher on ``launch/train.py``; returns the run's records."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = [*command, str(ROOT / "launch/train.py"), str(config), "--output_dir", str(folder), *options]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    state = json.loads((folder / "trainer_state.json").read_text())
    engine = json.loads((folder / "environment.json").read_text())["engine"]
    metrics = json.loads((folder / "metrics.json").read_text())
    return {"losses": [e["loss"] for e in state["log_history"] if "loss" in e], "engine": engine, "metrics": metrics}


def test_zero2_runs_the_demo_config(tmp_path: Path) -> None:
    """``deepspeed launch/train.py demo.yaml`` on two CPU ranks, to its evaluation and saved model."""
    prepare(tmp_path, seed=0)
    options = {
        "model.name_or_path": tmp_path / "untrained",
        "data.train": tmp_path / "train.jsonl",
        "data.eval": tmp_path / "heldout.jsonl",
        "score_cache_dir": tmp_path / "scores",
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "logging_steps": 1,
        "max_steps": 64,
        "deepspeed": "zero2.json",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    run = launch(with_port(DEEPSPEED), Path("demo.yaml"), tmp_path / "dpo", *words)
    assert run["engine"] == {"class": "DeepSpeedEngine", "zero_stage": 2, "ranks": 2}
    assert len(run["losses"]) == 64
    assert run["losses"][0] == pytest.approx(math.log(2), abs=1e-3)
    assert sum(run["losses"][-5:]) / 5 < math.log(2)
    assert run["metrics"]["eval_rewards/margins"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dpo").num_parameters() > 1_000_000
