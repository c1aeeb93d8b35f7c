"""A new loss is one new file and its test: nothing else of the tree knows of it, and everything works with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_rows

ROOT = Path(__file__).parents[1]
LOSS = '''"""The exponential loss of the margin."""

import torch
from torch import Tensor

from ._margin import MarginLoss


class Exponential(MarginLoss):
    """The exponential loss of the margin.

    Formula: ``exp(-clip(z, -20, 20))``, z = beta * (a - b).

    Args:
        beta: > 0.

    Source: a paper of this week.
    """

    def of_margin(self, z: Tensor) -> Tensor:
        return torch.exp(-z.clamp(-20, 20))
'''
TEST = '''"""The exponential loss: 1 where policy and reference agree."""

import torch

from alignlab import losses


def test_one_at_reference(exact, at_reference):
    assert torch.equal(losses.build("exponential")(at_reference(exact.pairs())).loss, torch.ones(6).double())
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, links as links, with the two new files."""
    tree = tmp_path_factory.mktemp("copy") / "tree"
    tree.mkdir()
    for name in ("alignlab", "losses", "data", "configs", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    before = files(tree)
    (tree / "losses/exponential.py").write_text(LOSS, encoding="utf-8")
    (tree / "tests/losses/test_exponential.py").write_text(TEST, encoding="utf-8")
    assert files(tree) - before == {Path("losses/exponential.py"), Path("tests/losses/test_exponential.py")}
    return tree


def files(tree: Path) -> set[Path]:
    return {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}


def python(tree: Path, *words: str) -> str:
    """Runs python on the copy; returns what it printed."""
    env = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_names_commands_and_contract_know_it(tree: Path) -> None:
    listing = "import alignlab; from alignlab import losses; print(alignlab.__file__); print(*losses.names())"
    where, names = python(tree, "-c", listing).splitlines()
    assert Path(where).is_relative_to(tree)
    assert "exponential" in names.split()
    shown = python(tree, "-m", "alignlab", "losses", "exponential")
    assert "The exponential loss of the margin." in shown
    assert "a paper of this week" in shown
    tests = ["tests/losses/test_exponential.py", "tests/losses/test_contract.py", "tests/test_zoo_trainer.py"]
    found = python(tree, "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider", "-rA", "-k", "exponential")
    assert "tests/losses/test_contract.py::test_contract[exponential]" in found
    assert "tests/test_zoo_trainer.py::test_ten_steps_packed_equal_padded[exponential]" in found
    assert "6 passed" in found


def test_a_run_trains_with_it(tree: Path, model_path: Path, tmp_path: Path) -> None:
    """From YAML; its first loss is exp(0) = 1."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)))
    (tmp_path / "run.yaml").write_text(f"""
loss: {{name: exponential, beta: 0.5}}
model: {{name_or_path: {model_path}}}
data: {{train: {tmp_path}/rows.jsonl}}
output_dir: {tmp_path}/run
score_cache_dir: {tmp_path}/scores
max_steps: 3
learning_rate: 2.0e-3
logging_steps: 1
per_device_train_batch_size: 4
""")
    python(tree, "-m", "alignlab", "train", str(tmp_path / "run.yaml"))
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    found = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[-1] < 0.99
