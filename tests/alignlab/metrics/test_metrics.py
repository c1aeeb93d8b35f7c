"""The metrics as `evaluate` loads them: by path, offline, with the figures of the formulas."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab import metrics
from alignlab.metrics import formulas

NAMES = [
    "diversity",
    "group_accuracy",
    "length_exploitation",
    "likelihood_displacement",
    "list_ranking",
    "margin_calibration",
    "preference_accuracy",
    "sequence_kl",
    "win_rate",
]

INPUTS = {
    "diversity": {"texts": ["a b a", "a b"], "groups": ["p", "p"]},
    "group_accuracy": {"chosen": [1.0, 0.0], "rejected": [0.0, 1.0], "groups": ["a", "b"]},
    "length_exploitation": {"lengths": [1, 2, 3, 4], "rewards": [0.0, 1.0, 1.0, 4.0], "reference_lengths": [2] * 4},
    "likelihood_displacement": {
        "chosen": [-2.0, 0.0],
        "ref_chosen": [-1.0, -1.0],
        "rejected": [-3.0, -2.0],
        "ref_rejected": [-1.0, -1.0],
    },
    "list_ranking": {"rewards": [[1.0, 2.0, 0.0], [0.5, 0.5]], "scores": [[3.0, 2.0, 1.0], [1.0, 0.0]]},
    "margin_calibration": {"margins": [math.log(3), -math.log(3), 0.0], "bins": 2},
    "preference_accuracy": {"chosen": [1.0, 2.0], "rejected": [0.0, 2.0]},
    "sequence_kl": {"log_ratios": [[0.5, -0.25], [1.0]], "token_kl": [[0.1, 0.2], [0.3]]},
    "win_rate": {"outcomes": [1.0, 0.5, 0.0, 1.0], "resamples": 50},
}


def test_the_folder_is_the_list_of_metrics():
    assert metrics.names() == NAMES == sorted(INPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_loads_it_by_path_and_agrees(name, tmp_path):
    """``evaluate.load(path).compute(...)`` in a folder of its own returns what the formula does."""
    loaded = metrics.load(name, cache_dir=str(tmp_path))
    assert loaded.description.split() == getattr(formulas, name).__doc__.split()
    found = loaded.compute(**INPUTS[name])
    expected = getattr(formulas, name)(**INPUTS[name])
    assert {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in expected.items()}


def test_evaluate_adds_batches(tmp_path):
    loaded = metrics.load("preference_accuracy", cache_dir=str(tmp_path))
    loaded.add_batch(chosen=[1.0, 2.0], rejected=[0.0, 3.0])
    loaded.add(chosen=5.0, rejected=0.0)
    assert loaded.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_loads_offline_away_from_the_checkout(tmp_path):
    """In a fresh process, with the hub switched off and an empty cache, and from another folder."""
    script = (
        "import json, evaluate\n"
        "from alignlab import metrics\n"
        "print(json.dumps(evaluate.load(metrics.path('win_rate')).compute(outcomes=[1.0, 0.5])['win_rate']))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == 0.75


def test_no_metric_imports_two_names_on_one_line():
    """``import datasets, evaluate`` breaks evaluate's loader, which reads the lines."""
    for file in Path(metrics.FOLDER).glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not (line.startswith("import ") and "," in line), file
