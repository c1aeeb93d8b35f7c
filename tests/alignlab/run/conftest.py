"""Sweeps over a config of two steps."""

import json
from pathlib import Path

import pytest
from making import make_rows

from alignlab.config.parser import write_yaml


@pytest.fixture
def folder(tmp_path, model_path, monkeypatch):
    """A working directory with a config of two steps on eight pairs."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo", "beta": 0.1},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": "pairs.jsonl"},
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report": False,
    }
    Path("base.yaml").write_text(write_yaml(values), encoding="utf-8")
    return tmp_path


def _write(**changes):
    values = {"config": "base.yaml", "output_dir": "sweep", "grid": {"loss.beta": [0.1, 0.2], "seed": [0, 1]}}
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    Path("sweep.yaml").write_text(write_yaml(values), encoding="utf-8")
    return "sweep.yaml"


@pytest.fixture
def write():
    return _write
