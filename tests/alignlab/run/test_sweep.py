"""Sweeps: which runs a file means, what is refused before any of them, what is run again and what is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import make_rows

from alignlab.checkpoints.early_stop import STOPPED_EARLY
from alignlab.cli import main
from alignlab.config.parser import read_yaml, write_yaml
from alignlab.run.launcher import _ranges, write_array
from alignlab.run.sweep import load_sweep

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ROOT / "launch" / "slurm_one_node.sbatch"


@pytest.fixture
def folder(tmp_path, model_path, monkeypatch):
    """A working directory with a config of two steps on eight pairs."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo", "beta": 0.1},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": "pairs.jsonl"},
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report": False,
    }
    Path("base.yaml").write_text(write_yaml(values), encoding="utf-8")
    return tmp_path


def write(**changes):
    values = {"config": "base.yaml", "output_dir": "sweep", "grid": {"loss.beta": [0.1, 0.2], "seed": [0, 1]}}
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    Path("sweep.yaml").write_text(write_yaml(values), encoding="utf-8")
    return "sweep.yaml"


def refused(capsys, file, *words):
    assert main(["sweep", file, *words]) == 2
    return capsys.readouterr().err.removeprefix("alignlab: error: ").strip()


# ---- which runs --------------------------------------------------------------------------------------------------


def test_every_point_of_the_grid_with_every_listed_run(folder):
    listed = [{"loss": {"name": "ipo", "beta": 0.5}}, {"name": "slow", "learning_rate": 1e-7, "loss.name": "dpo"}]
    sweep = load_sweep(write(runs=listed, grid={"seed": [3, 4]}, set={"max_steps": 1}))
    assert [run.name for run in sweep.runs] == [
        "ipo-beta_0.5-seed_3",
        "ipo-beta_0.5-seed_4",
        "slow-seed_3",
        "slow-seed_4",
    ]
    first, last = sweep.runs[0].config, sweep.runs[-1].config
    assert (first.loss, first.training["seed"]) == ({"name": "ipo", "beta": 0.5}, 3)
    assert (last.loss, last.training["learning_rate"]) == ({"name": "dpo", "beta": 0.1}, 1e-7)
    assert {run.config.training["max_steps"] for run in sweep.runs} == {1}
    assert [run.config.training["output_dir"] for run in sweep.runs] == [str(run.folder) for run in sweep.runs]


def test_a_grid_alone_and_names_that_are_files(folder):
    path = Path("pairs.jsonl").resolve()
    sweep = load_sweep(write(grid={"data.train": [str(path)], "learning_rate": [1e-6, 2e-6]}))
    assert all("/" not in run.name and len(run.name) <= 120 for run in sweep.runs)
    assert len({run.name for run in sweep.runs}) == 2


# ---- refused before anything runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"loss.betta": [1.0]}}, "runs[0] with loss.betta: 1.0: loss.betta: there is no option 'betta'"),
        ({"grid": {"learning_rat": [1.0]}}, "learning_rat: unknown key; did you mean learning_rate?"),
        ({"runs": [{}, {"loss": {"name": "dopo"}}], "grid": {}}, "runs[1]: loss.name: there is no loss 'dopo'"),
        ({"grid": {"seed": 3}}, "grid.seed: expected a list of values, found 3"),
        ({"grid": {"seed": []}}, "grid.seed: expected a list of values, found []"),
        ({"grid": {"seed": ["one"]}}, "seed: expected int, found text 'one'"),
        ({"runs": []}, "runs: an empty list"),
        ({"runs": ["dpo"]}, "runs[0]: expected a mapping of keys to values, found 'dpo'"),
        ({"gird": {}}, "gird: unknown key; did you mean grid?"),
        ({"output_dir": None}, "output_dir: expected text, found None"),
        ({"config": "nothing.yaml"}, "no config 'nothing.yaml'"),
        ({"grid": {"seed": [1, 1]}}, "these runs are there twice: seed_1"),
        ({"grid": {"learning_rate.x": [1]}, "set": {"learning_rate": 1.0}}, "learning_rate.x: learning_rate is 1.0"),
    ],
)
def test_a_bad_sweep_is_refused_with_its_key(folder, capsys, changes, message):
    assert message in refused(capsys, write(**changes))
    assert not Path("sweep").exists()


def test_another_run_in_the_folder_is_refused(folder, capsys):
    """The seed is the same and so is the name, but the learning rate came from the config, which has changed."""
    file = write(grid={"seed": [0]})
    assert main(["sweep", file, "--in-process"]) == 0
    base = read_yaml(Path("base.yaml"))
    Path("base.yaml").write_text(write_yaml({**base, "learning_rate": 0.5}))
    assert main(["sweep", file]) == 2
    error = capsys.readouterr().err
    assert "holds a run with learning_rate: 1e-06, and the sweep says 0.5; choose another output_dir" in error


# ---- running -----------------------------------------------------------------------------------------------------


def test_what_is_missing_is_run_and_nothing_else(folder, capsys):
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


def test_a_run_goes_on_from_its_checkpoint_in_a_process_of_its_own(folder, capsys):
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


def test_a_failed_run_is_named_and_the_others_run(folder, capsys):
    file = write(runs=[{"data.train": "nothing.jsonl"}, {"data.train": "pairs.jsonl"}], grid={})
    assert main(["sweep", file, "--in-process"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 runs failed: data.train_nothing.jsonl"
    assert [run.state for run in load_sweep(file).runs] == ["missing", "done"]


# ---- Slurm -------------------------------------------------------------------------------------------------------


def test_the_array_has_a_job_for_each_run_and_leaves_out_what_is_done(folder, capsys):
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


def test_slurm_errors(folder, capsys):
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


def test_a_signal_ends_the_run_at_work_with_a_checkpoint_and_the_sweep(folder):
    """The sweep hands SIGTERM on, the run saves, and the second run is not begun."""
    file = write(grid={"seed": [0, 1]}, set={"max_steps": 100000, "logging_steps": 1, "disable_tqdm": False})
    log = Path("sweep/seed_0/train.log")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "alignlab", "sweep", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not (log.is_file() and b"'loss'" in log.read_bytes()):
            assert sweep.poll() is None, sweep.stdout.read()
            time.sleep(0.2)
        sweep.send_signal(signal.SIGTERM)
        output, _ = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == STOPPED_EARLY, output
    assert output.splitlines()[-1] == "told to stop in seed_0; the same command goes on"
    assert [run.state for run in load_sweep(file).runs] == ["begun", "missing"]
