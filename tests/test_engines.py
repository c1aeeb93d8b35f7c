"""Two real ranks under every engine train each of the seven losses as one process does, metrics included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_ranks
import pytest
import torch
from engine_ranks import LOSSES, STEPS
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DEEPSPEED = [str(BIN / "deepspeed"), "--num_gpus", "2"]
# What differs from run to run, or says how rows were laid out on the ranks.
NOT_COMPARED = ("step", "epoch", "learning_rate", "padding", "grad_norm", "per_second", "runtime", "memory/")
Log = list[dict[str, float]]


def launch(words: list[str], folder: Path, out: Path, **changes: Any) -> str:
    """Runs ``engine_ranks.py`` under a launcher; returns what it said. Offload's first launch compiles for a minute."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(Path(__file__).parent)
    command = [*words, engine_ranks.__file__, str(folder), str(out), json.dumps(changes)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def log_of(run: Path) -> Log:
    """Returns the logged values of each step, and of the evaluation at the end."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if not any(part in key for part in NOT_COMPARED)}
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]


def engine_of(run: Path) -> dict[str, Any]:
    engine: dict[str, Any] = json.loads((run / "environment.json").read_text())["engine"]
    return engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and rows, and the runs of one process."""
    path = tmp_path_factory.mktemp("engines")
    engine_ranks.prepare(path)
    launch([sys.executable], path, path / "one")
    return path


ENGINES: dict[str, tuple[list[str], int | None, dict[str, Any]]] = {
    "ddp": (TORCHRUN, None, {}),
    "zero1": (TORCHRUN, 1, {"gradient_accumulation_steps": 2}),
    "zero2": (DEEPSPEED, 2, {}),
    "zero3": (TORCHRUN, 3, {}),
    "zero2_offload": (TORCHRUN, 2, {}),
    "zero3_offload": (TORCHRUN, 3, {}),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_seven_losses_on_two_ranks_equal_one_process(engine: str, folder: Path) -> None:
    """Twenty steps within 1e-4, every metric of every step within 1e-4 of its size; the last step is uneven.

    21 rows in steps of 4: at the end of each epoch one rank runs a filler; most of its steps lack a group, or a label.
    """
    words, stage, changes = ENGINES[engine]
    if stage is not None:
        changes = {**changes, "deepspeed": f"{engine}.json"}
    out = folder / engine
    launch(words, folder, out, **changes)
    name = "DistributedDataParallel" if stage is None else "DeepSpeedEngine"
    for loss in LOSSES:
        assert engine_of(out / loss) == {"class": name, "zero_stage": stage, "ranks": 2}, loss
        one, two = log_of(folder / "one" / loss), log_of(out / loss)
        assert len(one) == STEPS + 1
        assert [e["loss"] for e in two[:STEPS]] == pytest.approx([e["loss"] for e in one[:STEPS]], abs=1e-4), loss
        for step, (expected, found) in enumerate(zip(one, two, strict=True)):
            assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), (loss, step)
        losses = [entry["loss"] for entry in one[:STEPS]]
        assert max(losses) - min(losses) > 0.1, f"{loss}: the trajectory moves"
    stores = [{path.name for path in (run / "scores").iterdir()} for run in (folder / "one", out)]
    assert stores[0] == stores[1], "the reference has the same fingerprint on shards as whole"
    assert all(stores)


RESUME: dict[str, Any] = {
    "losses": ["group_robust"],
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 6,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
}


@pytest.mark.parametrize("stage", [2, 3])
def test_resume_on_another_number_of_ranks_continues_the_trajectory(stage: int, folder: Path) -> None:
    """Six steps on two ranks and six on one, and the other way round: losses of an uninterrupted run within 1e-5."""
    changes = {**RESUME, "deepspeed": f"zero{stage}.json"}
    alone = [*TORCHRUN[:-1], "1"]
    for name, before, after in (("fewer", TORCHRUN, alone), ("more", alone, TORCHRUN)):
        whole, out = folder / f"{name}{stage}_whole", folder / f"{name}{stage}"
        launch(before, folder, whole, **changes)
        shutil.copytree(whole, out)
        run, uninterrupted = out / "group_robust", whole / "group_robust"
        shutil.rmtree(run / "checkpoint-12")
        said = launch(after, folder, out, **changes, resume_from_checkpoint="auto")
        assert "it is converted first" in said
        assert engine_of(run) == {"class": "DeepSpeedEngine", "zero_stage": stage, "ranks": int(after[-1])}
        expected, found = ([e["loss"] for e in log_of(path) if "loss" in e] for path in (uninterrupted, run))
        assert len(found) == 12
        assert found == pytest.approx(expected, abs=1e-5), name
        weights = [load_file(path / "model.safetensors") for path in (uninterrupted, run)]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-5)
        assert not list(run.glob(".universal*"))
