"""Fault drills: runs are killed, starved of disk, fed damage and NaN, and still end where an undisturbed run does."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill_lives import Life, losses_of
from launching import free_port
from making import make_rows

from alignlab.checkpoints.early_stop import STOPPED_EARLY
from alignlab.checkpoints.folders import problem

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
report: false
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
    return str(life.log)


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


# ---- a full disk ---------------------------------------------------------------------------------------------------


def assert_disk_error(life: Life, run: Path) -> None:
    """One line that says what was not saved and what is left, and that checkpoint is whole."""
    assert life.end() == 2, life.log
    (line,) = [line for line in life.log.splitlines() if line.startswith("alignlab: error: ")]
    last = run / f"checkpoint-{checkpoints(run)[-1]}"
    assert re.search(
        rf"{run}/checkpoint-{checkpoints(run)[-1] + SAVE_STEPS} could not be saved \(\d+\.\d MB are free ", line
    )
    assert f"; {last.name} is the newest that is complete" in line
    assert problem(last) is None
    assert not list(run.glob(".saving-*")), "the space is free again"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A disk of 1.5 MB takes two checkpoints of half a megabyte; made larger, it takes the rest."""
    run = tmp_path / "run"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", run], check=True)
    try:
        life = begin(config, tmp_path)
        assert_disk_error(life, run)
        assert "(0.0 MB are free there)" in life.log
        subprocess.run(["mount", "-o", "remount,size=64m", run], check=True)
        finish(config, tmp_path)
        assert_same_end(run, undisturbed)
    finally:
        subprocess.run(["umount", "-l", run], check=True)


def small_files() -> None:
    """The weights still fit, the optimiser's file does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))


def test_files_may_not_grow_any_more(config: Path, undisturbed: Path, halfway: Path) -> None:
    words = [str(config), "--output_dir", str(halfway / "run")]
    assert_disk_error(Life(halfway, words, before=small_files), halfway / "run")
    finish(config, halfway)
    assert_same_end(halfway / "run", undisturbed)


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_is_named_and_never_trained_on(config: Path, undisturbed: Path, halfway: Path) -> None:
    """A bit of the newest weights, the end of the next optimiser, a shard of the cache: all are made again."""
    run = halfway / "run"
    steps = checkpoints(run)
    newest, next_one = run / f"checkpoint-{steps[-1]}", run / f"checkpoint-{steps[-2]}"
    flip(newest / "model.safetensors")
    os.truncate(next_one / "optimizer.pt", 1000)
    shard = sorted((halfway / "scores").rglob("*-r*.safetensors"))[1]
    flip(shard)
    log = finish(config, halfway)
    assert f"{newest} is passed over: model.safetensors is not what was written" in log
    assert f"{next_one} is passed over: optimizer.pt has 1000 bytes" in log
    assert f"Damaged score shard {shard}" in log
    assert_same_end(run, undisturbed)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "loss_state.safetensors", "rng_state.pth"])
def test_a_damaged_checkpoint_asked_for_by_name_is_refused(
    name: str, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "checkpoint-6"
    shutil.copytree(undisturbed / damaged.name, damaged)
    flip(damaged / name)
    life = begin(config, tmp_path, "--resume_from_checkpoint", str(damaged))
    assert life.end() == 2
    assert f"resume_from_checkpoint: {damaged}: {name} is not what was written" in life.log
    assert not life.reach("training")


# ---- a loss that is not a number -----------------------------------------------------------------------------------

POISONED = """
import os, torch
from alignlab.losses import Pairs

calls = 0

def poisoned(batch: Pairs, beta: float = 0.5):
    global calls
    logps = batch.chosen.sum_logps
    calls += len(logps) == 2 and logps.dtype == torch.float32  # of the run, not of the check of a loss from a file
    loss = torch.nn.functional.softplus(-beta * (batch.chosen.sum_logps - batch.rejected.sum_logps))
    bad = (torch.arange(len(loss)) == 0) & (calls > int(os.environ.get("DRILL_SOUND", "1000")))
    return loss * torch.where(bad, float("nan"), 1.0)
"""


def test_a_nan_loss_names_its_row_and_keeps_the_checkpoints(config: Path, tmp_path: Path) -> None:
    """The seventh step goes wrong in both micro-batches; what was before it is kept, and goes on without the cause."""
    (tmp_path / "poisoned.py").write_text(POISONED, encoding="utf-8")
    loss = ["--loss", f"{{name: {tmp_path}/poisoned.py:poisoned}}"]
    life = begin(config, tmp_path, *loss, DRILL_SOUND="12")
    assert life.end() == 2
    (line,) = [line for line in life.log.splitlines() if line.startswith("alignlab: error: ")]
    rows = config.parent / "rows.jsonl"
    assert re.fullmatch(rf"alignlab: error: the loss is not a finite number for {rows}:\d+, {rows}:\d+", line)
    run = tmp_path / "run"
    assert checkpoints(run) == [2, 4, 6]
    assert problem(run / "checkpoint-6") is None
    finish(config, tmp_path, *loss)
    finish(config, tmp_path / "sound", *loss)
    assert_same_end(run, tmp_path / "sound" / "run")


# ---- told to stop, and a second run --------------------------------------------------------------------------------


def test_told_to_stop_while_scoring_and_while_training(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Each time with status 75, and nothing done twice but the shard that was being made."""
    life = begin(config, tmp_path)
    assert life.reach("scoring")
    os.kill(life.process.pid or 0, signal.SIGTERM)
    assert life.end() == STOPPED_EARLY, life.log
    assert "SIGTERM came before the first step" in life.log
    life = begin(config, tmp_path)
    for _ in range(5):
        assert life.reach("training")
    os.kill(life.process.pid or 0, signal.SIGUSR1)
    assert life.end() == STOPPED_EARLY, life.log
    (step,) = checkpoints(tmp_path / "run")[-1:]
    assert f"told to stop at step {step}; resume_from_checkpoint: auto goes on" in life.log
    finish(config, tmp_path)
    assert_same_end(tmp_path / "run", undisturbed)


def test_a_limit_of_time_that_is_over_stops_after_the_first_step(config: Path, tmp_path: Path) -> None:
    life = begin(config, tmp_path, "--max_wall_time", "0.01")
    assert life.end() == STOPPED_EARLY, life.log
    assert checkpoints(tmp_path / "run") == [1]
    assert "stopped before max_wall_time at step 1" in life.log


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(config: Path, tmp_path: Path) -> None:
    first = begin(config, tmp_path, "--max_steps", "100000")
    assert first.reach("training"), first.log
    second = begin(config, tmp_path)
    assert second.end() == 2
    assert f"output_dir: another run is writing to {tmp_path / 'run'} (process {first.process.pid} on " in second.log
    first.kill()
    third = begin(config, tmp_path, "--max_steps", "100000")
    assert third.reach("training"), third.log
    third.kill()


# ---- a rank dies ---------------------------------------------------------------------------------------------------


def begin_ranks(config: Path, folder: Path, *words: str) -> list[Life]:
    """Two ranks of a run, as a launcher starts them, but with nobody who ends one when the other dies."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = ("--per_device_train_batch_size", "1", "--ddp_timeout", "20", *words)
    return [begin(config, folder, *words, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


@pytest.mark.parametrize(("engine", "dies"), [("ddp", 1), ("zero2", 0)])
def test_a_rank_dies(engine: str, dies: int, config: Path, tmp_path: Path) -> None:
    """The other ends by itself, with an error; started again, both go on to where an undisturbed run ends."""
    words = ["--deepspeed", "zero2.json"] if engine == "zero2" else []
    ranks = begin_ranks(config, tmp_path / "killed", *words)
    for _ in range(2):
        assert ranks[dies].reach("after saving"), ranks[dies].log
    ranks[dies].kill()
    began = time.monotonic()
    assert ranks[1 - dies].end(60) not in (0, STOPPED_EARLY)
    print(f"{engine}: rank {1 - dies} ended {time.monotonic() - began:.1f} s after rank {dies}")
    for one in begin_ranks(config, tmp_path / "killed", *words):
        assert one.end() == 0, one.log
    for one in begin_ranks(config, tmp_path / "undisturbed", *words):
        assert one.end() == 0, one.log
    found, expected = (tmp_path / name / "run" for name in ("killed", "undisturbed"))
    assert losses_of(found) == losses_of(expected)
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_one_rank_alone_is_told_to_stop_while_it_scores(config: Path, tmp_path: Path) -> None:
    """It ends with the status that a job script requeues on, and waits for nobody; the other fails without it."""
    ranks = begin_ranks(config, tmp_path)
    assert ranks[1].reach("scoring"), ranks[1].log
    os.kill(ranks[1].process.pid or 0, signal.SIGUSR1)
    assert ranks[1].end() == STOPPED_EARLY, ranks[1].log
    assert "SIGUSR1 came before the first step" in ranks[1].log
    assert ranks[0].end(60) not in (0, STOPPED_EARLY)
    assert not checkpoints(tmp_path / "run")
