"""The Slurm templates: they parse, and say what they would run."""

import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
TEMPLATES = sorted(path.name for path in LAUNCH.glob("slurm_*.sbatch"))
PARTS = [*TEMPLATES, "slurm_common.sh", "slurm_chain.sh"]


def run(template, *words, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        ["bash", LAUNCH / template, *words], env=environment, capture_output=True, text=True, timeout=60
    )


def dry_run(template, *words, **variables):
    """Returns the line of variables and the words of the command that a job would run."""
    done = run(template, "--dry-run", *words, **variables)
    assert done.returncode == 0, done.stderr
    variables, command = done.stdout.splitlines()
    return variables, shlex.split(command)


@pytest.mark.parametrize("name", PARTS)
def test_parses(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_share_their_directives(template):
    """What must not differ: append to the log of an earlier start, requeue, and be told early."""
    text = (LAUNCH / template).read_text()
    for directive in ("open-mode=append", "requeue", "signal=B:USR1@300", "ntasks-per-node=8", "gpus-per-node=8"):
        assert f"#SBATCH --{directive}\n" in text, directive


@pytest.mark.parametrize("template", ["slurm_one_node.sbatch", "slurm_many_nodes.sbatch"])
def test_dry_run_prints_the_command_of_every_task(template):
    words = ["demo", "--loss.beta", "0.2"]
    slurm = {"SLURM_JOB_ID": "1234567", "SLURM_CPUS_PER_TASK": "8", "SLURM_RESTART_COUNT": "2"}
    variables, command = dry_run(template, *words, VENV="/v", **slurm)
    assert variables == "MASTER_ADDR=127.0.0.1 MASTER_PORT=24567 OMP_NUM_THREADS=8"
    start = command.index("bash")
    assert command[:start] == [
        *("srun", "--kill-on-bad-exit=1", "--cpus-per-task=8"),
        "--output=runs/alignlab-1234567/logs/train-1234567-restart-2.log",
    ]
    assert "RANK=$SLURM_PROCID" in command[start + 2]  # unexpanded: every task has its own
    assert command[start + 4 :] == [
        *("/v/bin/python", "-m", "alignlab", "train", "demo", "--loss.beta", "0.2"),
        *("--output_dir", "runs/alignlab-1234567", "--resume_from_checkpoint", "auto"),
    ]


def test_tasks_expand_their_own_rank():
    command = dry_run("slurm_one_node.sbatch", "demo")[1]
    per_task = command[command.index("bash") + 2]
    show = ["bash", "-c", per_task, "rank", "bash", "-c", "echo $RANK $LOCAL_RANK $WORLD_SIZE"]
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    assert subprocess.run(show, env={**os.environ, **task}, capture_output=True, text=True).stdout == "3 1 4\n"


def test_apptainer_wraps_the_command_and_pyxis_the_step():
    command = dry_run("slurm_one_node.sbatch", "demo", CONTAINER="image.sif", CONTAINER_MOUNTS="/d:/d")[1]
    apptainer = ["rank", "apptainer", "exec", "--nv", "--bind", "/d:/d", "image.sif", "python", "-m", "alignlab"]
    assert command[command.index("rank") :][: len(apptainer)] == apptainer
    pyxis = {"CONTAINER": "pyxis:nvcr.io#nvidia/pytorch:26.01-py3", "CONTAINER_MOUNTS": "/d:/d"}
    command = dry_run("slurm_one_node.sbatch", "demo", **pyxis)[1]
    assert "--container-image=nvcr.io#nvidia/pytorch:26.01-py3" in command
    assert "--container-mounts=/d:/d" in command
    assert command[command.index("rank") + 1] == "python"


def test_scoring_and_evaluation_are_tasks_of_the_same_template():
    command = dry_run("slurm_one_node.sbatch", "demo", TASK="score", RUN_DIR="r")[1]
    assert command[command.index("rank") + 1 :] == ["python", "-m", "alignlab", "score", "demo", "--output_dir", "r"]
    command = dry_run("slurm_one_node.sbatch", "demo", TASK="eval", RUN_DIR="r", EVAL_DATA="pairs.jsonl")[1]
    assert command[command.index("rank") + 1 :] == [
        *("python", "-m", "alignlab", "eval", "r", "--data", "pairs.jsonl", "--output", "r/eval.json")
    ]
    assert "--ntasks=1" in command


@pytest.mark.parametrize(
    ("template", "words", "variables", "message"),
    [
        *((template, [], {}, f"sbatch launch/{template} CONFIG.yaml") for template in TEMPLATES),
        ("slurm_chain.sh", [], {}, "bash launch/slurm_chain.sh CONFIG.yaml"),
        ("slurm_one_node.sbatch", ["demo"], {"TASK": "tain"}, "TASK is 'tain'; allowed: train, score, eval"),
        ("slurm_one_node.sbatch", ["demo"], {"TASK": "eval"}, "TASK=eval needs EVAL_DATA"),
        (
            "slurm_one_node.sbatch",
            ["demo"],
            {"CHECKOUT": "/nowhere"},
            "submit from alignlab's checkout, or set CHECKOUT",
        ),
        ("slurm_sweep.sbatch", ["demo"], {"SLURM_ARRAY_TASK_ID": "4"}, "2 losses x 2 betas are --array=0-3"),
    ],
)
def test_nonsense_is_refused(template, words, variables, message):
    done = run(template, *words, **variables)
    assert done.returncode == 2
    assert message in done.stderr


def test_sweep_counts_betas_fastest():
    grid = {"LOSSES": "dpo ipo kto", "BETAS": "0.1 0.5", "SWEEP_DIR": "s"}
    for index, (loss, beta) in enumerate(product(["dpo", "ipo", "kto"], ["0.1", "0.5"])):
        command = dry_run("slurm_sweep.sbatch", "demo", SLURM_ARRAY_TASK_ID=str(index), **grid)[1]
        assert command[command.index("train") + 2 :] == [
            *("--loss.name", loss, "--loss.beta", beta),
            *("--output_dir", f"s/{loss}-{beta}", "--resume_from_checkpoint", "auto"),
        ]


def test_chain_says_what_waits_for_what():
    done = run("slurm_chain.sh", "--dry-run", "demo", SBATCH="sbatch -p gpu", RUN_DIR="r", EVAL_DATA="pairs.jsonl")
    assert done.returncode == 0, done.stderr
    score, train, evaluate = map(shlex.split, done.stdout.splitlines())
    template = [str(LAUNCH / "slurm_one_node.sbatch"), "demo"]
    assert score == [
        "env",
        "TASK=score",
        "RUN_DIR=r",
        *["sbatch", "-p", "gpu", "--parsable", "--job-name=alignlab-score"],
        *template,
    ]
    assert "--dependency=afterok:JOB-OF-SCORE" in train
    assert "--dependency=afterok:JOB-OF-TRAIN" in evaluate
    assert len(run("slurm_chain.sh", "--dry-run", "demo").stdout.splitlines()) == 2  # nothing to evaluate on


def test_preflight_names_what_a_node_lacks(tmp_path):
    """A stand-in for srun runs the node's checks here."""
    (tmp_path / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    base = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN_DIR": str(tmp_path / "run"), "MIN_FREE_GB": "0"}
    venv = str(Path(sys.executable).parents[1])
    for changes, message in (
        ({"MIN_FREE_GB": "10000000"}, "GB free, MIN_FREE_GB asks for 10000000"),
        ({"GPUS": "64", "VENV": venv}, "working GPUs, 64 were asked for"),
        ({"VENV": "/nowhere"}, "/nowhere/bin/python cannot import alignlab"),
    ):
        done = run("slurm_one_node.sbatch", "demo", **(base | changes))
        assert done.returncode in (2, 3)
        assert message in done.stderr
