"""The Slurm template: it parses, says what it would run, and requeues a job that was told to stop early."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parent.parent / "launch" / "slurm_one_node.sbatch"


def run(*words, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(["bash", TEMPLATE, *words], env=environment, capture_output=True, text=True, timeout=60)


def test_template_parses():
    subprocess.run(["bash", "-n", TEMPLATE], check=True)


def test_dry_run_prints_the_command_of_every_task():
    done = run("--dry-run", "demo", "--loss.beta", "0.2", SLURM_JOB_ID="1234567", SLURM_CPUS_PER_TASK="8", VENV="/v")
    assert done.returncode == 0, done.stderr
    variables, command = done.stdout.splitlines()
    assert variables == "MASTER_ADDR=127.0.0.1 MASTER_PORT=24567 OMP_NUM_THREADS=8"
    words = shlex.split(command)
    assert words[:4] == ["srun", "--kill-on-bad-exit=1", "bash", "-c"]
    assert "RANK=$SLURM_PROCID" in words[4]  # unexpanded: every task has its own
    assert words[6:] == [
        *("/v/bin/python", "-m", "alignlab", "train", "demo", "--loss.beta", "0.2"),
        *("--output_dir", "runs/alignlab-1234567", "--resume_from_checkpoint", "auto"),
    ]


def test_tasks_expand_their_own_rank():
    done = run("--dry-run", "demo", SLURM_JOB_ID="1")
    per_task = shlex.split(done.stdout.splitlines()[1])[4]
    show = ["bash", "-c", per_task, "rank", "bash", "-c", "echo $RANK $LOCAL_RANK $WORLD_SIZE"]
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    assert subprocess.run(show, env={**os.environ, **task}, capture_output=True, text=True).stdout == "3 1 4\n"


def test_container_wraps_the_command():
    done = run("--dry-run", "demo", CONTAINER="image.sif")
    assert "rank apptainer exec --nv image.sif python -m alignlab" in done.stdout


def test_without_a_config_it_says_how_to_call_it():
    done = run()
    assert done.returncode == 2
    assert "CONFIG.yaml" in done.stderr


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("2", False)])
def test_early_signal_reaches_the_tasks_and_requeues_until_the_cap(tmp_path, restarts, requeued):
    """Stand-ins for srun (runs one task) and scontrol; the template's own waiting, forwarding and counting is real."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n')
    (tmp_path / "python").write_text(
        f"#!/bin/bash\ntrap 'exit 75' USR1\ntouch {tmp_path}/started\nfor i in {{1..300}}; do sleep 0.1; done\n"
    )
    for name in ("srun", "scontrol", "python"):
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": restarts,
        "MAX_RESTARTS": "2",
    }
    job = subprocess.Popen(
        ["bash", TEMPLATE, "demo"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output = job.communicate(timeout=60)[0].decode()
    assert job.returncode == 75, output
    assert (tmp_path / "requeued").exists() == requeued
    assert re.search("requeueing .restart 1 of at most 2" if requeued else "not requeueing: 2 restarts", output)
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
