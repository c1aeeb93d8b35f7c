"""Every shipped config loads, opens with its purpose and its command, and says only what exists."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from alignlab.config import load_config
from alignlab.sweep import load_sweep

FOLDER = Path(str(resources.files("alignlab.configs")))
SWEEPS = sorted(FOLDER.glob("sweep_*.yaml"))
CONFIGS = sorted({*FOLDER.glob("*.yaml")} - {*SWEEPS})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_loads_by_its_bare_name(path):
    assert load_config(path.stem) == load_config(path)
    assert load_config(path.name).training["output_dir"].startswith("runs/")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_opens_with_purpose_and_command(path):
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab train {path.name}" in header[0] or f"alignlab train configs/{path.name}" in header[0]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_shipped_sweep_loads_and_opens_with_its_command(path):
    assert len({run.name for run in load_sweep(path.name).runs}) > 1
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab sweep {path.name}" in header[0]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_config_leaves_the_batch_to_the_trainer(stage):
    config = json.loads((FOLDER / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == stage
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
