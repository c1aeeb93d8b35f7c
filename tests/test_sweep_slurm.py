"""A sweep's array under a real Slurm: ``.ci/slurm start DIR`` starts one and prints the SLURM_CONF that this needs."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import make_rows

from alignlab.cli import main
from alignlab.config.parser import write_yaml
from alignlab.run.sweep import load_sweep

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = "--gpus-per-node=0 --cpus-per-task=1 --ntasks-per-node=1 --time=10"


@pytest.fixture(autouse=True)
def _real_slurm(monkeypatch):
    """Skips without Slurm; where ALIGNLAB_TEST_SLURM=1 says that there must be one, fails."""
    answers = shutil.which("sinfo") and "SLURM_CONF" in os.environ
    if not answers or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode != 0:
        assert os.environ.get("ALIGNLAB_TEST_SLURM", "0") in ("", "0"), "no Slurm answers"
        pytest.skip("no Slurm: start one with .ci/slurm and set SLURM_CONF")
    monkeypatch.setenv("VENV", str(Path(sys.executable).parents[1]))
    monkeypatch.setenv("MIN_FREE_GB", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_an_array_trains_what_is_missing(tmp_path, model_path, monkeypatch, capsys):
    """Two runs of which one is done: one job, and then the report has both."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)), encoding="utf-8")
    base = {"loss": {"name": "dpo"}, "model": {"name_or_path": str(model_path)}, "data": {"train": "pairs.jsonl"}}
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report": False}
    Path("base.yaml").write_text(write_yaml({**base, **training, "score_cache_dir": "scores"}))
    sweep = {"config": "base.yaml", "output_dir": "sweep", "grid": {"seed": [0, 1]}}
    Path("sweep.yaml").write_text(write_yaml(sweep))
    first, second = load_sweep("sweep.yaml").runs
    first.folder.mkdir(parents=True)
    (first.folder / "metrics.json").write_text("{}")
    options = f"--sbatch={ON_CPU} --output={tmp_path}/job-%a.log"
    capsys.readouterr()
    assert (
        main(["sweep", "sweep.yaml", "--slurm", str(ROOT / "launch/slurm_one_node.sbatch"), options, "--submit"]) == 0
    )
    command, answer = capsys.readouterr().out.splitlines()
    assert command.startswith("sbatch --array=1 ")
    job = answer.removeprefix("Submitted batch job ")
    squeue = ["squeue", "--noheader", "--job", job, "--format=%T"]
    end = time.monotonic() + 240
    while subprocess.run(squeue, capture_output=True, text=True, timeout=60).stdout.strip():
        assert time.monotonic() < end, "the job does not end"
        time.sleep(0.3)
    assert second.is_done, (tmp_path / "job-1.log").read_text()
    assert [path.name for path in tmp_path.glob("job-*.log")] == ["job-1.log"]
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 2 done"
