"""Fault drills: runs are killed, starved of disk, fed damage and NaN, and still end where an undisturbed run does."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill_lives import Life, losses_of
from making import make_rows
from safetensors.torch import load_file

from alignlab.checkpoint_folders import problem
from alignlab.early_stop import STOPPED_EARLY

KILLS = 30
STEPS, SAVE_STEPS = 12, 2
# How long each phase lasts, seconds, at most; kills fall anywhere in it, or in what follows.
SPANS = {"scoring": 0.5, "training": 0.8, "saving": 0.12}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The server that lives are forked from, and so each of them, has one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """Groups weighted by their losses on 40 pairs: the loss has state that a checkpoint must carry."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in make_rows(40, groups=("a", "b", "c"))), encoding="utf-8"
    )
    (folder / "run.yaml").write_text(
        f"""
loss: {{name: group_robust, base: {{name: dpo, beta: 0.5}}, step_size: 0.5}}
model: {{name_or_path: {model_path}}}
data: {{train: {folder}/rows.jsonl}}
max_steps: {STEPS}
learning_rate: 2.0e-3
lr_scheduler_type: cosine
logging_steps: 1
save_strategy: steps
save_steps: {SAVE_STEPS}
resume_from_checkpoint: auto
disable_tqdm: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
precompute_ref_batch_size: 4
""",
        encoding="utf-8",
    )
    return folder / "run.yaml"


def begin(config: Path, folder: Path, *words: str, **variables: str) -> Life:
    return Life(folder, [str(config), "--output_dir", str(folder / "run"), *words], variables)


def finish(config: Path, folder: Path, *words: str, **variables: str) -> str:
    """Lives to the end; returns the log."""
    life = begin(config, folder, *words, **variables)
    assert life.end() == 0, life.log
    return life.log


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(config, folder)
    return folder / "run"


@pytest.fixture
def halfway(config: Path, tmp_path: Path) -> Path:
    """A folder whose run was killed once it had three checkpoints."""
    life = begin(config, tmp_path)
    for _ in range(3):
        assert life.reach("after saving"), life.log
    life.kill()
    assert checkpoints(tmp_path / "run")[-1] >= 3 * SAVE_STEPS
    return tmp_path


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*"))


def assert_same_end(run: Path, expected: Path) -> None:
    """Bit for bit: final weights, optimiser and random states, the loss's state, and the losses of all steps."""
    assert losses_of(run) == losses_of(expected)
    assert (run / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    last = f"checkpoint-{STEPS}"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "loss_state.safetensors"):
        assert (run / last / name).read_bytes() == (expected / last / name).read_bytes(), name


def test_thirty_random_kills(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of scoring, training and saving, several in each of as many runs as it takes."""
    rng = random.Random(20)
    fell: Counter[str] = Counter()
    runs, began = 0, time.monotonic()
    while sum(fell.values()) < KILLS:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        aims = ["scoring"] * rng.randint(1, 2) + rng.choices(["training", "saving"], k=4)
        for aim in aims[: KILLS - sum(fell.values())]:
            life = begin(config, folder, "--save_total_limit", "2")
            for _ in range(1 if aim == "scoring" else rng.randint(1, 3)):
                if not life.reach(aim):
                    break
            time.sleep(rng.uniform(0, SPANS[aim]))
            where = life.kill()
            if where == "ended":
                break
            fell[where] += 1
            good = [path for path in (folder / "run").glob("checkpoint-*") if problem(path) is None]
            assert good or not list((folder / "run").glob("checkpoint-*")), "every checkpoint that is there is whole"
        finish(config, folder, "--save_total_limit", "2")
        assert_same_end(folder / "run", undisturbed)
        assert len(checkpoints(folder / "run")) == 2
        assert not list((folder / "run").glob(".*-checkpoint-*")), "what killed saves left is gone"
    print(f"{sum(fell.values())} kills in {runs} runs, {time.monotonic() - began:.0f} s: {dict(fell)}")
    assert sum(fell.values()) == KILLS
    assert {"scoring", "training", "saving"} <= set(fell)
