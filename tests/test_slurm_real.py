"""Every template runs to its end under a real Slurm of two nodes; stopped jobs come back where they were.

``.ci/slurm start DIR`` starts such a Slurm and prints the SLURM_CONF that these tests need.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from making import make_rows
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
ON_CPU = ["--gpus-per-node=0", "--cpus-per-task=1", "--ntasks-per-node=1", "--time=10"]
ENVIRONMENT = {
    "VENV": str(Path(sys.executable).parents[1]),
    "MIN_FREE_GB": "1",
    "MASTER_ADDR": "127.0.0.1",  # n1 and n2 are this machine; no name server knows them
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # DeepSpeed compiles with ninja
}
STEPS = 60
SUBMITTED: list[str] = []  # other tests have jobs of their own


def slurm(*words: str, folder: Path = ROOT, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def _real_slurm() -> Iterator[None]:
    """Skips without Slurm; where ALIGNLAB_TEST_SLURM=1 says that there must be one, fails."""
    reason = None
    if "SLURM_CONF" not in os.environ or shutil.which("sinfo") is None:
        reason = "no Slurm: start one with .ci/slurm and set SLURM_CONF"
    elif subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode != 0:
        reason = f"the Slurm of {os.environ['SLURM_CONF']} does not answer"
    if reason is not None:
        assert os.environ.get("ALIGNLAB_TEST_SLURM", "0") in ("", "0"), reason
        pytest.skip(reason)
    yield
    if SUBMITTED:
        subprocess.run(["scancel", *SUBMITTED], timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """A config of a tiny run, with its pairs and a score cache of its own."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(32)))
    (folder / "run.yaml").write_text(f"""
loss: {{name: dpo, beta: 0.5}}
model: {{name_or_path: {model_path}}}
data: {{train: {folder}/rows.jsonl}}
score_cache_dir: {folder}/scores
max_steps: {STEPS}
learning_rate: 1.0e-3
logging_steps: 1
save_strategy: "no"
disable_tqdm: true
per_device_train_batch_size: 4
""")
    return folder


def submit(folder: Path, template: str, *options: str, words: tuple[str, ...] = (), **variables: str) -> str:
    """Submits a template with the tiny config; returns the job's number."""
    output = f"--output={folder}/%x-%j.log"
    command = ["sbatch", "--parsable", output, *ON_CPU, *options, str(LAUNCH / template), str(folder / "run.yaml")]
    SUBMITTED.append(slurm(*command, *words, folder=ROOT, **(ENVIRONMENT | variables)))
    return SUBMITTED[-1]


def logs(folder: Path) -> str:
    """Everything that the jobs said, for the report of a failed test."""
    files = [path for path in sorted(folder.rglob("*.log")) if path.is_file()]
    return "\n".join(f"==> {path}\n{path.read_text()[-3000:]}" for path in files)


def state(job: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", "--job", job, "--format=%T")


def wait(met: Callable[[], bool], folder: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, slurm("squeue", "--states=all") + logs(folder)
        time.sleep(0.3)


def finish(job: str, folder: Path) -> None:
    """Waits until a job has ended well."""
    wait(lambda: state(job) not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"), folder)
    assert state(job) == "COMPLETED", logs(folder)


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """The run of the one-node template, from its first step to its last."""
    job = submit(folder, "slurm_one_node.sbatch", RUN_DIR=str(folder / "one"))
    finish(job, folder)
    return folder / "one"


def test_one_node(uninterrupted: Path) -> None:
    found = losses(uninterrupted)
    assert len(found) == STEPS
    assert found[0] == pytest.approx(math.log(2), abs=1e-4)
    assert found[-1] < 0.6
    assert [path.name.split("-restart-")[1] for path in (uninterrupted / "logs").iterdir()] == ["0.log"]
    assert not list(uninterrupted.glob(".preflight*"))


def resumed(run: Path, job: str) -> bool:
    """True if a restart of the job went on from a checkpoint before the last step; one rank of all logs the steps."""
    checkpoints = [int(re.sub(r"\D", "", path.name)) for path in run.glob("checkpoint-*")]
    restarted = (run / "logs" / f"train-{job}-restart-1.log").read_text().count("  loss ")
    return 0 < min(checkpoints) < STEPS and restarted == STEPS - min(checkpoints)


def assert_same_run(run: Path, other: Path) -> None:
    """Losses of every step and final weights, bit for bit."""
    assert losses(run) == losses(other)
    ours, theirs = (load_file(path / "model.safetensors") for path in (run, other))
    assert all(bool((ours[name] == value).all()) for name, value in theirs.items())


def restart_soon(job: str, folder: Path) -> None:
    """Waits until the job is back in the queue, and lets it wait there for five seconds instead of two minutes.

    At once would be too early: a node refuses a job whose last start it is still cleaning up.
    """
    wait(lambda: state(job) == "PENDING", folder)
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now+5")


def started(run: Path, job: str, folder: Path) -> None:
    """Waits until the first start of a job has trained three steps."""
    log = run / "logs" / f"train-{job}-restart-0.log"
    wait(lambda: log.exists() and log.read_text().count("  loss ") >= 3, folder)


def test_told_to_stop_it_requeues_itself_and_ends_as_if_never_stopped(uninterrupted: Path, folder: Path) -> None:
    run = folder / "early"
    job = submit(folder, "slurm_one_node.sbatch", RUN_DIR=str(run))
    started(run, job, folder)
    slurm("scancel", "--batch", "--signal=USR1", job)
    restart_soon(job, folder)
    finish(job, folder)
    said = (folder / f"alignlab-{job}.log").read_text()
    assert "told to stop early" in said
    assert "requeueing (restart 1 of at most 20)" in said
    assert resumed(run, job)
    assert_same_run(run, uninterrupted)


SLOW = """
import os, time, torch
from alignlab.losses.dpo import DPO

class Slow(DPO):
    def forward(self, batch, totals=None):
        of_the_run = batch.chosen.sum_logps.dtype == torch.float32  # a loss from a file is checked first, in float64
        time.sleep(1.5 if of_the_run and not int(os.environ.get("SLURM_RESTART_COUNT", 0)) else 0)
        return super().forward(batch, totals)
"""


def test_slurms_own_signal_before_the_time_is_up_does_the_same(uninterrupted: Path, folder: Path) -> None:
    """90 s of steps in two minutes; the signal is due 60 s after the start, and Slurm sends it up to 20 s early."""
    (folder / "slow.py").write_text(SLOW)
    run, options = folder / "limit", ["--time=2", "--signal=B:USR1@60"]
    words = ("--loss.name", f"{folder}/slow.py:Slow")
    job = submit(folder, "slurm_one_node.sbatch", *options, RUN_DIR=str(run), words=words)
    log = folder / f"alignlab-{job}.log"
    wait(lambda: log.exists() and "requeueing" in log.read_text(), folder)
    restart_soon(job, folder)
    finish(job, folder)
    assert "told to stop early" in log.read_text()
    assert resumed(run, job)
    assert_same_run(run, uninterrupted)


def test_restarts_are_capped_and_a_cancelled_job_stays_cancelled(folder: Path) -> None:
    capped, cancelled = folder / "capped", folder / "cancelled"
    steps = ("--max_steps", "100000")
    one = submit(folder, "slurm_one_node.sbatch", RUN_DIR=str(capped), MAX_RESTARTS="0", words=steps)
    two = submit(folder, "slurm_one_node.sbatch", RUN_DIR=str(cancelled), words=steps)
    started(capped, one, folder)
    started(cancelled, two, folder)
    slurm("scancel", "--batch", "--signal=USR1", one)
    slurm("scancel", two)
    wait(lambda: state(one) == "FAILED" and state(two) == "CANCELLED", folder)
    assert "not requeueing: 0 restarts are used up" in (folder / f"alignlab-{one}.log").read_text()
    assert "ExitCode=75:0" in slurm("scontrol", "show", "job", one)
    assert "Restarts=0" in slurm("scontrol", "show", "job", two)


def test_many_nodes_under_zero2_stop_and_come_back_and_train_as_one_process_does(
    uninterrupted: Path, folder: Path
) -> None:
    """Two nodes, a rank each, no ssh: half of every batch on each, and both save when the job is told to stop."""
    run, words = folder / "many", ("--deepspeed", "zero2.json", "--per_device_train_batch_size", "2")
    job = submit(folder, "slurm_many_nodes.sbatch", RUN_DIR=str(run), words=words)
    started(run, job, folder)
    slurm("scancel", "--batch", "--signal=USR1", job)
    restart_soon(job, folder)
    finish(job, folder)
    engine = json.loads((run / "environment.json").read_text())["engine"]
    assert engine == {"class": "DeepSpeedEngine", "zero_stage": 2, "ranks": 2}
    assert "NodeList=n[1-2]" in slurm("scontrol", "show", "job", job)
    assert resumed(run, job)
    assert losses(run) == pytest.approx(losses(uninterrupted), abs=1e-4)


def test_sweep_trains_every_loss_with_every_beta(folder: Path) -> None:
    """At step 0 every margin is 0: DPO's loss is ln 2, IPO's (1 / (2 beta))^2."""
    sweep = {"LOSSES": "dpo ipo", "BETAS": "0.25 0.5", "SWEEP_DIR": str(folder / "sweep")}
    words = ("--max_steps", "2")
    job = submit(folder, "slurm_sweep.sbatch", "--array=0-3", f"--output={folder}/%x-%A_%a.log", words=words, **sweep)
    wait(lambda: set(state(job).split()) <= {"COMPLETED", "FAILED"}, folder)
    assert state(job).split() == ["COMPLETED"] * 4, logs(folder)
    expected = {"dpo-0.25": math.log(2), "dpo-0.5": math.log(2), "ipo-0.25": 4.0, "ipo-0.5": 1.0}
    assert {path.name for path in (folder / "sweep").iterdir()} == set(expected)
    for name, first in expected.items():
        assert losses(folder / "sweep" / name)[0] == pytest.approx(first, abs=1e-3)


def test_chain_scores_then_trains_then_evaluates(folder: Path) -> None:
    """Submitted by submit.py; training starts only when the scores are there, and computes none."""
    run, cache = folder / "chain", folder / "chain-scores"
    options = ["--gpus", "0", "--cpus", "1", "--time", "10", "--run-dir", str(run), "--venv", ENVIRONMENT["VENV"]]
    options += ["--eval-data", str(folder / "rows.jsonl")]
    overrides = ["--score_cache_dir", str(cache), "--max_steps", "2"]
    words = [sys.executable, str(LAUNCH / "submit.py"), "chain", str(folder / "run.yaml"), *options, *overrides]
    jobs = dict(line.split() for line in slurm(*words, folder=folder, **ENVIRONMENT).splitlines())
    SUBMITTED.extend(jobs.values())
    assert list(jobs) == ["score", "train", "eval"]
    assert f"Dependency=afterok:{jobs['score']}" in slurm("scontrol", "show", "job", jobs["train"])
    finish(jobs["score"], folder)
    assert "reference: 64 completions scored" in (run / "logs" / f"score-{jobs['score']}-restart-0.log").read_text()
    shards = sorted(cache.rglob("*.safetensors"))
    finish(jobs["train"], folder)
    assert len(losses(run)) == 2
    assert sorted(cache.rglob("*.safetensors")) == shards
    finish(jobs["eval"], folder)
    assert json.loads((run / "eval.json").read_text())
