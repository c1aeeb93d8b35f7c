"""Installs each built distribution into an environment of its own, away from the checkout, and runs what a user would.

python tests/support/dist.py dist/*
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOSS = """
import torch
from alignlab.losses import Needs

def hinge(batch, beta: float = 0.1) -> torch.Tensor:
    return torch.relu(1 - beta * (batch.chosen.log_ratios - batch.rejected.log_ratios))

hinge.needs = Needs(ref_logps=True)
"""


def run(*words: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tried(distribution: Path) -> dict[str, object]:
    """Installs one distribution, runs the demo and a loss from a file, and returns figures."""
    with tempfile.TemporaryDirectory(prefix="alignlab-dist-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python, work = folder / "venv" / "bin" / "python", folder / "work"
        work.mkdir()
        constraints = ("--constraint", ROOT / "constraints.txt", "--quiet")
        began = time.perf_counter()
        run(python, "-m", "pip", "install", *constraints, "torch", cwd=work)
        run(python, "-m", "pip", "install", *constraints, distribution.resolve(), cwd=work)
        installed = time.perf_counter() - began
        where = Path(run(python, "-c", "import alignlab; print(alignlab.__file__)", cwd=work).strip()).parent
        assert where.is_relative_to(folder), where
        began = time.perf_counter()
        run(folder / "venv" / "bin" / "alignlab", "--version", cwd=work)
        started = time.perf_counter() - began
        began = time.perf_counter()
        run(folder / "venv" / "bin" / "alignlab", "demo", cwd=work)
        demo = time.perf_counter() - began
        (work / "mine.py").write_text(LOSS, encoding="utf-8")
        told = ("--loss", "{name: mine.py:hinge, beta: 0.5}", "--max_steps", "2", "--output_dir", "runs/own")
        run(folder / "venv" / "bin" / "alignlab", "losses", "check", "mine.py:hinge", cwd=work)
        run(folder / "venv" / "bin" / "alignlab", "train", "demo.yaml", *told, cwd=work)
        assert (work / "runs" / "own" / "model.safetensors").is_file()
        return {
            "distribution": distribution.name,
            "kB": round(distribution.stat().st_size / 1000),
            "installed kB": round(size(where) / 1000),
            "environment MB": round(size(folder / "venv") / 1e6),
            "install s": round(installed),
            "alignlab --version s": round(started, 2),
            "demo s": round(demo),
        }


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        print(json.dumps(tried(path)), flush=True)
