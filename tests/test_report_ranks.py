"""The report of a run whose weights are sharded over two ranks: all ranks write the samples, one the page."""

import json
import os
import subprocess
import sys
from pathlib import Path

from making import make_rows

from alignlab import load_config, train
from alignlab.config.parser import write_yaml


def test_samples_of_sharded_weights_are_those_of_one_process(tmp_path, model_path):
    """Before the first step, ZeRO-3 on two ranks answers as one process does; the prompts are the same."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(16)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo", "beta": 0.5},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(path), "eval_rows": 4},
        "output_dir": str(tmp_path / "one"),
        "score_cache_dir": str(tmp_path / "scores"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_samples": 3,
    }
    one = train(load_config(values))
    (tmp_path / "two.yaml").write_text(write_yaml({**values, "deepspeed": "zero3.json", "output_dir": "two"}))
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "alignlab", "train", "two.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    two = tmp_path / "two"
    assert json.loads((two / "environment.json").read_text())["engine"]["zero_stage"] == 3
    samples = [json.loads((folder / "samples.json").read_text())["rows"] for folder in (one, two)]
    kept = [[(row["prompt"], row["before"], row["before_tokens"]) for row in rows] for rows in samples]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 3
    assert all(row["after_tokens"] > 0 for row in samples[1])
    assert len(list((two / "plots").glob("*.png"))) >= 8
