"""Running a sweep: what is run again and what is not, in processes or as an array of Slurm jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignlab.checkpoints.early_stop import STOPPED_EARLY
from alignlab.cli import main
from alignlab.run.launcher import _ranges, write_array
from alignlab.run.sweep import load_sweep

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ROOT / "launch" / "slurm_one_node.sbatch"


@pytest.mark.slow
def test_what_is_missing_is_run_and_nothing_else(folder, write, capsys):
    file = write(grid={"loss.beta": [0.1, 0.2], "seed": [0]})
    assert main(["sweep", file, "--in-process"]) == 0
    folders = [run.folder for run in load_sweep(file).runs]
    assert all((one / "model.safetensors").is_file() for one in folders)
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in page
    assert '<th scope="row">loss.beta</th>' in page
    times = [(one / "metrics.json").stat().st_mtime_ns for one in folders]
    (folders[1] / "metrics.json").unlink()
    capsys.readouterr()
    assert main(["sweep", file, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 1 done, 1 missing"
    assert main(["sweep", file, "--in-process"]) == 0
    assert capsys.readouterr().out.startswith("1/1  beta_0.2-seed_0\n")
    after = [(one / "metrics.json").stat().st_mtime_ns for one in folders]
    assert after[0] == times[0]
    assert after[1] > times[1]


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_in_a_process_of_its_own(folder, write, capsys):
    """Stopped behind step 1 of 2, the run ends with the weights of one that was not stopped."""
    file = write(grid={"seed": [0, 1]}, set={"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2})
    stopped, whole = load_sweep(file).runs[0].folder, Path("whole")
    assert main(["sweep", file, "--in-process"]) == 0
    weights = (stopped / "model.safetensors").read_bytes()
    stopped.rename(whole)
    stopped.mkdir()
    (whole / "checkpoint-1").rename(stopped / "checkpoint-1")
    (stopped / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    capsys.readouterr()
    assert main(["sweep", file]) == 0
    assert capsys.readouterr().out.startswith("1/1  seed_0, from its checkpoint\n")
    assert (stopped / "model.safetensors").read_bytes() == weights
    steps = [entry["step"] for entry in json.loads((stopped / "trainer_state.json").read_text())["log_history"]]
    assert steps == [1, 2, 2]
    assert (stopped / "train.log").is_file()


def test_a_failed_run_is_named_and_the_others_run(folder, write, capsys):
    file = write(runs=[{"data.train": "nothing.jsonl"}, {"data.train": "pairs.jsonl"}], grid={})
    assert main(["sweep", file, "--in-process"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 runs failed: data.train_nothing.jsonl"
    assert [run.state for run in load_sweep(file).runs] == ["missing", "done"]


@pytest.mark.slow
def test_a_signal_ends_the_run_at_work_with_a_checkpoint_and_the_sweep(folder, write):
    """The sweep hands SIGTERM on, the run saves, and the second run is not begun."""
    file = write(grid={"seed": [0, 1]}, set={"max_steps": 100000, "logging_steps": 1, "disable_tqdm": False})
    log = Path("sweep/seed_0/train.log")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "alignlab", "sweep", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not (log.is_file() and b"  loss " in log.read_bytes()):
            assert sweep.poll() is None, sweep.stdout.read()
            time.sleep(0.2)
        sweep.send_signal(signal.SIGTERM)
        output, _ = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == STOPPED_EARLY, output
    assert output.splitlines()[-1] == "told to stop in seed_0; the same command goes on"
    assert [run.state for run in load_sweep(file).runs] == ["begun", "missing"]


# ---- Slurm -------------------------------------------------------------------------------------------------------


def test_the_array_has_a_job_for_each_run_and_leaves_out_what_is_done(folder, write, capsys):
    file = write(grid={"seed": [0, 1, 2, 3]})
    done = load_sweep(file).runs[1].folder
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    assert main(["sweep", file, "--slurm", str(TEMPLATE), "--sbatch=--time=9 --gpus-per-node=1"]) == 0
    assert capsys.readouterr().out == "sbatch --array=0,2-3 --time=9 --gpus-per-node=1 sweep/array.sbatch\n"
    script = Path("sweep/array.sbatch").read_text()
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert options == [line for line in TEMPLATE.read_text().splitlines() if line.startswith("#SBATCH")]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    shown = subprocess.run(
        ["bash", "sweep/array.sbatch", "--dry-run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert str(folder / "sweep" / "configs" / "seed_2.yaml") in shown.stdout
    assert f"--output_dir {folder / 'sweep' / 'seed_2'} " in shown.stdout


def test_ranges():
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert _ranges([4]) == "4"


def test_slurm_errors(folder, write, capsys):
    file = write(grid={"seed": [0]})
    assert main(["sweep", file, "--submit"]) == 2
    assert "--submit, --sbatch: of what?" in capsys.readouterr().err
    assert main(["sweep", file, "--slurm", "nothing.sbatch"]) == 2
    assert "no template nothing.sbatch" in capsys.readouterr().err
    assert main(["sweep", file, "--slurm", "base.yaml"]) == 2
    assert "has no #SBATCH lines" in capsys.readouterr().err
    (sweep := load_sweep(file)).runs[0].folder.mkdir(parents=True)
    (sweep.runs[0].folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="all 1 runs are done"):
        write_array(sweep, TEMPLATE)
