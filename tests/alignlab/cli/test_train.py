"""``alignlab train`` from end to end: alone, under launchers, and told to stop."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import free_port
from making import make_rows
from transformers import AutoModelForCausalLM

from alignlab.checkpoints.early_stop import STOPPED_EARLY
from alignlab.cli import main
from alignlab.config.parser import write_yaml
from alignlab.config.run import load_config
from alignlab.run.machine import on_machine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config_path(tmp_path, model_path):
    """A run of two steps on eight pairs."""
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in make_rows(8))
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(tmp_path / "pairs.jsonl.gz")},
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    (tmp_path / "run.yaml").write_text(write_yaml(values), encoding="utf-8")
    return tmp_path / "run.yaml"


def test_train_help_lists_every_key(capsys):
    assert main(["train", "--help-all"]) == 0
    shown = capsys.readouterr().out
    for key in ("model.name_or_path", "data.eval_rows", "reference_tolerance", "learning_rate", "peft", "deepspeed"):
        assert f"\n{key} " in shown


def test_train_writes_the_run_folder(config_path, tmp_path):
    assert main(["train", str(config_path), "--loss.beta", "0.2"]) == 0
    resolved = load_config(tmp_path / "run" / "config.yaml")
    assert resolved == on_machine(load_config(config_path, ["--loss.beta", "0.2"]))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.hidden_size == 32
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_a_mistake_in_the_data_names_file_and_line(capsys, config_path, tmp_path):
    with gzip.open(tmp_path / "pairs.jsonl.gz", "at", encoding="utf-8") as file:
        file.write('{"prompt": "a", "chosen": "b"}\n')
    assert main(["train", str(config_path)]) == 2
    assert "pairs.jsonl.gz:9" in capsys.readouterr().err


def launch(*words, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(job):
    """Waits for the job and returns its exit status; its output stands in the report of a failed test."""
    try:
        print(job.communicate(timeout=120)[0])
    finally:
        job.terminate()
    return job.returncode


@pytest.mark.slow
def test_two_ranks_under_torchrun_end_cleanly(config_path, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    job = launch(*torchrun, "-m", "alignlab", "train", str(config_path), "--per_device_train_batch_size", "2")
    assert ended(job) == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["ranks"] == 2
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.slow
def test_deepspeeds_launcher_may_put_the_local_rank_first(config_path, tmp_path):
    """It starts ``train.py --local_rank=0 CONFIG ...`` with the same in the environment."""
    rank = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    job = launch(sys.executable, str(ROOT / "launch" / "train.py"), "--local_rank=0", str(config_path), **rank)
    assert ended(job) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_from_there(config_path, tmp_path):
    """SIGUSR1 in a run of very many steps: a checkpoint, status 75; resumed for two steps more, it counts on."""
    run = tmp_path / "run"
    job = launch(sys.executable, "-m", "alignlab", "train", str(config_path), "--max_steps", "100000")
    assert any("  loss " in line for line in job.stdout), "it never trained"  # reads up to the first logged step
    job.send_signal(signal.SIGUSR1)
    assert ended(job) == STOPPED_EARLY
    checkpoints = list(run.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    reached = int(checkpoints[0].name.split("-")[1])
    assert 0 < reached < 100000
    words = ["--max_steps", str(reached + 2), "--resume_from_checkpoint", "auto", "--resume_with_changes", "true"]
    assert main(["train", str(config_path), *words]) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == reached + 2


def test_the_end_names_model_report_and_the_next_command(config_path, tmp_path, model_path, capsys):
    assert main(["train", str(config_path), "--max_steps", "1"]) == 0
    run, end = tmp_path / "run", capsys.readouterr().out.splitlines()[-3:]
    assert end == [
        f"model:   {run}",
        f"report:  {run / 'report.html'}",
        f"next:    alignlab eval {run} --reference {model_path} --data HELD_OUT.jsonl",
    ]
