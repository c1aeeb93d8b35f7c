"""A loop as a chain of jobs under a real Slurm: ``.ci/slurm start DIR`` starts one and prints what this needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from making import make_rows
from safetensors.torch import load_file
from torch.testing import assert_close

from alignlab.cli import main
from alignlab.config import write_yaml
from alignlab.rounds import Rounds, load_rounds

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = "--gpus-per-node=0 --cpus-per-task=1 --ntasks-per-node=1 --time=10"
UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
NAMES = ["1/sample", "1/pair", "1/train", "2/sample", "2/pair", "2/train"]


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The jobs of a test, which end with it; skips without Slurm, or fails where ALIGNLAB_TEST_SLURM=1 wants one."""
    answers = shutil.which("sinfo") and "SLURM_CONF" in os.environ
    if not answers or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode != 0:
        assert os.environ.get("ALIGNLAB_TEST_SLURM", "0") in ("", "0"), "no Slurm answers"
        pytest.skip("no Slurm: start one with .ci/slurm and set SLURM_CONF")
    for name, value in (("VENV", str(Path(sys.executable).parents[1])), ("MIN_FREE_GB", "1"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    submitted: list[str] = []
    yield submitted
    if submitted:
        subprocess.run(["scancel", *submitted], timeout=60)


def squeue(job: str, what: str) -> list[str]:
    """Returns a column of squeue for a job, a line for each job of an array; empty once Slurm has forgotten it."""
    words = ["squeue", "--noheader", "--states=all", "--array", "--job", job, f"--format={what}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.slow
def test_a_chain_of_jobs_makes_what_one_process_makes(
    tmp_path: Path,
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    jobs: list[str],
) -> None:
    """Two rounds of sampling (an array of two), pairs, training: each job waits for the one before, and all end well.

    Answers and pairs are those of the loop in one process, byte for byte, and so are the weights but for rounding.
    """
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)), encoding="utf-8")
    train = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report": False, "use_cpu": True}
    loop = {
        "config": "dpo.yaml",
        "output_dir": "rounds",
        "rounds": 2,
        "start": str(model_path),
        "prompts": {"path": "prompts.jsonl", "per_round": 4},
        "sample": {"samples": 2, "max_new_tokens": 6, "batch_size": 2, "unfinished": "keep"},
        "pair": {"rule": "human_own"},
        "train": train | {"data.eval_rows": None, "eval_strategy": "no", "score_cache_dir": "scores"},
    }
    Path("loop.yaml").write_text(write_yaml(loop), encoding="utf-8")
    words = ["--slurm", str(ROOT / "launch/slurm_one_node.sbatch"), f"--sbatch={ON_CPU}", "--array", "2", "--submit"]
    assert main(["rounds", "loop.yaml", *words]) == 0
    command, *lines = capfd.readouterr().out.splitlines()
    assert command == "bash rounds/chain.sh"
    numbers = dict(line.split() for line in lines)
    jobs.extend(numbers.values())
    assert list(numbers) == NAMES
    for before, name in pairwise(NAMES):
        assert f"afterok:{numbers[before]}" in " ".join(squeue(numbers[name], "%E")), name
    end = time.monotonic() + 900
    while any(state in UNDER_WAY for job in jobs for state in squeue(job, "%T")):
        assert time.monotonic() < end, "the chain does not end"
        time.sleep(1)
    said = "\n".join(f"{path}\n{path.read_text()[-2000:]}" for path in sorted(tmp_path.rglob("*.log")))
    assert {str(stage): state for stage, state in Rounds(load_rounds("loop.yaml")).states()} == dict.fromkeys(
        NAMES, "done"
    ), said
    assert "1-sample" in {path.name for path in Path("rounds/jobs").iterdir()}
    alone = Rounds(load_rounds({**loop, "output_dir": "alone"})).run(lambda _: None)
    for round_ in ("round-01", "round-02"):
        for file in ("sample/answers.jsonl", "pair/pairs.jsonl"):
            assert (tmp_path / "rounds" / round_ / file).read_bytes() == (alone / round_ / file).read_bytes(), file
        ours, theirs = (load_file(one / round_ / "train/model.safetensors") for one in (tmp_path / "rounds", alone))
        assert_close(ours, theirs)
