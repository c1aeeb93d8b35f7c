"""The commands, as people type them."""

import gzip
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from making import make_rows
from transformers import AutoModelForCausalLM

from alignlab import losses
from alignlab.checkpoints.early_stop import STOPPED_EARLY
from alignlab.cli import main
from alignlab.config.parser import write_yaml
from alignlab.config.run import load_config

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


def fails(capsys, *words):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("alignlab: error: ")
    return captured.err.removeprefix("alignlab: error: ").strip()


def test_help_comes_at_once():
    """Nothing heavy is imported for it."""
    script = (
        "import sys; from alignlab.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("train", "losses", "data", "cache", "eval", "demo"):
        assert f"\n    {command} " in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"alignlab {metadata.version('alignlab')}\n"


def test_train_help_lists_every_key(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in ("model.name_or_path", "data.eval_rows", "reference_tolerance", "learning_rate", "peft", "deepspeed"):
        assert f"\n{key} " in shown


def test_losses_lists_the_zoo(capsys):
    assert main(["losses"]) == 0
    shown = capsys.readouterr().out
    for name in losses.names():
        assert f"│ {name} " in shown
    assert "beta: 0.1" in shown
    assert "ref_logps" in shown


def test_losses_describes_one(capsys):
    assert main(["losses", "ipo"]) == 0
    shown = capsys.readouterr().out
    assert "formula: " in shown
    assert "kto" not in shown


def test_losses_names_the_nearest(capsys):
    assert "did you mean" in fails(capsys, "losses", "dop")


def test_losses_check_of_ones_own(capsys, tmp_path):
    good = (
        "def margin(batch, scale: float = 1.0):\n    return scale * (batch.rejected.sum_logps - batch.chosen.sum_logps)"
    )
    (tmp_path / "mine.py").write_text(good + "\n\ndef mean(batch):\n    return batch.chosen.sum_logps.mean()\n")
    assert main(["losses", "check", f"{tmp_path}/mine.py:margin"]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    assert main(["losses", "check", f"{tmp_path}/mine.py:mean"]) == 1
    assert "breaches of the contract" in capsys.readouterr().out


def test_data_check(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row) for row in make_rows(3)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main(["data", "check", "good.jsonl"]) == 0
    capsys.readouterr()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    assert main(["data", "check", "bad.jsonl"]) == 1
    assert "bad.jsonl:4" in capsys.readouterr().out


def test_cache_commands_on_an_empty_cache(capsys, tmp_path):
    for words in (["info"], ["verify"], ["prune", "--older_than_days", "3"]):
        assert main(["cache", *words, "--dir", str(tmp_path / "none")]) == 0
    assert "0 damaged shards" in capsys.readouterr().out
    assert "names 0 stores" in fails(capsys, "cache", "prune", "abc", "--dir", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--learning_rate", "1"], "which config?"),
        (["train", "nope"], "no config 'nope'; shipped ones"),
        (["train", "dpo", "--loss.beat", "1"], "loss.beat: there is no option 'beat'; did you mean beta"),
        (["train", "dpo", "--beta", "1"], "beta: not a key of this config; it is an option of the loss"),
        (["train", "dpo", "hh"], "one config at a time"),
        (["data", "check", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_errors_are_one_line(capsys, words, message):
    assert message in fails(capsys, *words)


def test_an_error_is_all_that_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "alignlab", "train", "nope"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("alignlab: error: no config 'nope'")
    assert done.stderr.count("\n") == 1


def test_debug_lets_the_traceback_through(monkeypatch):
    monkeypatch.setenv("ALIGNLAB_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="no config 'nope'"):
        main(["train", "nope"])


def test_train_writes_the_run_folder(config_path, tmp_path):
    assert main(["train", str(config_path), "--loss.beta", "0.2"]) == 0
    resolved = load_config(tmp_path / "run" / "config.yaml")
    assert resolved == load_config(config_path, ["--loss.beta", "0.2"])
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


def test_two_ranks_under_torchrun_end_cleanly(config_path, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    job = launch(*torchrun, "-m", "alignlab", "train", str(config_path), "--per_device_train_batch_size", "2")
    assert ended(job) == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["ranks"] == 2
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


def test_deepspeeds_launcher_may_put_the_local_rank_first(config_path, tmp_path):
    """It starts ``train.py --local_rank=0 CONFIG ...`` with the same in the environment."""
    rank = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29712"}
    job = launch(sys.executable, str(ROOT / "launch" / "train.py"), "--local_rank=0", str(config_path), **rank)
    assert ended(job) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_signal_saves_and_the_run_goes_on_from_there(config_path, tmp_path):
    """SIGUSR1 in a run of very many steps: a checkpoint, status 75; resumed for two steps more, it counts on."""
    run = tmp_path / "run"
    job = launch(sys.executable, "-m", "alignlab", "train", str(config_path), "--max_steps", "100000")
    assert any("'loss'" in line for line in job.stdout), "it never trained"  # reads up to the first logged step
    job.send_signal(signal.SIGUSR1)
    assert ended(job) == STOPPED_EARLY
    checkpoints = list(run.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    reached = int(checkpoints[0].name.split("-")[1])
    assert 0 < reached < 100000
    words = ["--max_steps", str(reached + 2), "--resume_from_checkpoint", "auto"]
    assert main(["train", str(config_path), *words]) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == reached + 2
