"""Two real ranks on the CPU: DeepSpeed ZeRO-2 and DDP train as one process does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from making import make_rows
from transformers import AutoModelForCausalLM

from alignlab.demo import prepare

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """KTO over groups on 21 pairs: its totals cross ranks, and the last step of an epoch is uneven."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(21, groups=("a", "b"))))
    (folder / "run.yaml").write_text(f"""
loss: {{name: kto, beta: 0.5}}
model: {{name_or_path: {model_path}}}
data: {{train: {folder}/rows.jsonl, eval_rows: 4}}
score_cache_dir: {folder}/scores
max_steps: 6
learning_rate: 2.0e-3
logging_steps: 1
save_strategy: "no"
disable_tqdm: true
per_device_train_batch_size: 8
""")
    return folder / "run.yaml"


def test_zero2_and_ddp_on_two_ranks_equal_one_process(config: Path, tmp_path: Path) -> None:
    """Losses of every step within 1e-4, and evaluation metrics; engine, stage and ranks are those asked for."""
    one = launch([sys.executable], config, tmp_path / "one")
    assert one["engine"] == {"class": "LlamaForCausalLM", "zero_stage": None, "ranks": 1}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ddp = launch(torchrun, config, tmp_path / "ddp", "--per_device_train_batch_size", "4")
    assert ddp["engine"] == {"class": "DistributedDataParallel", "zero_stage": None, "ranks": 2}
    deepspeed = [str(BIN / "deepspeed"), "--num_gpus", "2"]
    options = ["--per_device_train_batch_size", "4", "--deepspeed", "zero2.json"]
    zero = launch(deepspeed, config, tmp_path / "zero2", *options)
    assert zero["engine"] == {"class": "DeepSpeedEngine", "zero_stage": 2, "ranks": 2}
    for name, other in (("ddp", ddp), ("zero2", zero)):
        assert other["losses"] == pytest.approx(one["losses"], abs=1e-4), name
        for key, value in one["metrics"].items():
            if key.startswith("eval_") and "second" not in key and "runtime" not in key:
                assert other["metrics"][key] == pytest.approx(value, abs=1e-3), (name, key)
    assert one["losses"][0] != pytest.approx(one["losses"][-1], abs=1e-3), "the trajectory moves"


def test_zero2_runs_the_demo_config(tmp_path: Path) -> None:
    """``deepspeed launch/train.py demo.yaml`` on two CPU ranks, to its evaluation and saved model."""
    prepare(tmp_path, seed=0)
    deepspeed = [str(BIN / "deepspeed"), "--num_gpus", "2"]
    options = {
        "model.name_or_path": tmp_path / "untrained",
        "data.train": tmp_path / "train.jsonl",
        "data.eval": tmp_path / "heldout.jsonl",
        "score_cache_dir": tmp_path / "scores",
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "logging_steps": 1,
        "deepspeed": "zero2.json",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    run = launch(deepspeed, Path("demo.yaml"), tmp_path / "dpo", *words)
    assert run["engine"] == {"class": "DeepSpeedEngine", "zero_stage": 2, "ranks": 2}
    assert len(run["losses"]) == 256
    assert run["losses"][0] == pytest.approx(math.log(2), abs=1e-3)
    assert sum(run["losses"][-5:]) / 5 < math.log(2)
    assert run["metrics"]["eval_rewards/margins"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dpo").num_parameters() > 1_000_000
