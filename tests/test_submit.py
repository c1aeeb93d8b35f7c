"""launch/submit.py fills templates in, and refuses what would only fail after a day in the queue."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"


@pytest.fixture(scope="module")
def submit() -> Any:
    spec = importlib.util.spec_from_file_location("submit", LAUNCH / "submit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["submit"] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster as sinfo describes it: a stand-in, as no machine of the tests has GPUs."""
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\nprintf 'cpu|9|(null)\\ngpu|3|gpu:h100:8(S:0-1)\\ngpu|1|gpu:a100:4,nvme:1\\n'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one-node", "nosuch.yaml"], "no config 'nosuch.yaml'; shipped ones"),
        (["one-node", "demo", "--gpuss", "4"], "gpuss"),
        (["one-node", "demo", "--gpus", "-1"], "--gpus: expected at least 0, found -1"),
        (["one-node", "demo", "--gpus", "4", "--tasks", "3"], "--tasks: expected one per GPU, 4, found 3"),
        (["one-node", "demo", "--nodes", "2"], "--nodes: one-node runs on one node; for more: many-nodes"),
        (["one-node", "demo", "--time", "tomorrow"], "found 'tomorrow'"),
        (["one-node", "demo", "--time", "00:00:00"], "expected more than no time"),
        (["one-node", "demo", "--time", "5"], "--early: expected less than the time limit, 300 s, found 300 s"),
        (["one-node", "demo", "--venv", "/nowhere"], "there is no /nowhere/bin/python to run"),
        (["one-node", "demo", "--container", "no.sif"], "no image no.sif; allowed: a file for apptainer"),
        (["one-node", "demo", "--eval-data", "x"], "it is an option of chain"),
        (["chain", "demo", "--eval-data", "no.jsonl"], "--eval-data: no file no.jsonl"),
        (["one-node", "demo", "--output_dir", "x"], "--output_dir: the template sets it"),
        (["one-node", "demo", "--deepspeed", "zero9.json"], "no config 'zero9.json'"),
        (["one-node", "demo", "--partition", "gpus"], "--partition: expected one of cpu, gpu, found 'gpus'"),
        (["one-node", "demo", "--partition", "gpu", "--gpus", "16"], "--gpus: a node of gpu has at most 8, found 16"),
        (["many-nodes", "demo", "--partition", "gpu", "--nodes", "4"], "--nodes: gpu has 3 with 8 GPUs, found 4"),
        (["sweep", "demo", "--losses", "dpo nosuch"], "there is no loss 'nosuch'"),
        (["sweep", "demo", "--betas", "0.1 -1"], "beta"),
        (["sweep", "demo", "--betas", ""], "expected at least one of each"),
    ],
)
def test_nonsense_is_refused(submit: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main([*words, "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-0:30", 88200), ("1-00:00:01", 86401)],
)
def test_time_limits_are_read_as_slurm_reads_them(submit: Any, text: str, expected: int) -> None:
    assert submit.seconds(text) == expected


@pytest.mark.parametrize(
    ("gres", "gpus"), [("(null)", 0), ("gpu:4", 4), ("gpu:h100:8(S:0-1)", 8), ("nvme:1,gpu:a:2", 2)]
)
def test_gpus_of_a_node(submit: Any, gres: str, gpus: int) -> None:
    assert submit.gpus_of(gres) == gpus


def test_dry_run_prints_submission_and_command(submit: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["many-nodes", "demo", "--partition", "gpu", "--nodes", "3", "--time", "1-00:00:00", "--run-dir", "r"]
    assert submit.main([*words, "--dry-run", "--loss.beta", "0.3"]) == 0
    submitted, variables, command = capfd.readouterr().out.splitlines()
    options = "--nodes=3 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=8 --time=1-00:00:00 --signal=B:USR1@300"
    assert submitted == (
        f"RUN_DIR=r CHECKOUT={LAUNCH.parent} MAX_RESTARTS=20 sbatch {options} --partition=gpu "
        f"{LAUNCH}/slurm_many_nodes.sbatch demo --loss.beta 0.3"
    )
    assert variables.startswith("MASTER_ADDR=")
    assert "alignlab train demo --loss.beta 0.3 --output_dir r" in command


def test_a_sweep_has_a_job_for_every_loss_and_beta(submit: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "demo", "--losses", "dpo ipo hinge", "--betas", "0.1 0.2", "--run-dir", "s", "--dry-run"]
    assert submit.main(words) == 0
    submitted, _, command = capfd.readouterr().out.splitlines()
    assert submitted.startswith("LOSSES='dpo ipo hinge' BETAS='0.1 0.2' SWEEP_DIR=s ")
    assert "--array=0-5" in submitted
    assert "--loss.name dpo --loss.beta 0.1 --output_dir s/dpo-0.1" in command
