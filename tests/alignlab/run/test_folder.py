"""A run folder loses nothing: what is finished stays, another run is refused or put aside, what was told is kept."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dying import Died, dies_at
from making import make_rows

from alignlab.cli import main
from alignlab.config import load_config
from alignlab.run import ending
from alignlab.run.folder import is_done, keep_older
from alignlab.run.inputs import input_digests
from alignlab.run.machine import on_machine


def told(*words: str) -> list[str]:
    return ["train", "base.yaml", "--output_dir", "run", *words]


def model_bytes(folder: str = "run") -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_a_finished_run_is_not_run_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second start ends at once with status 0, also where it only logs otherwise; what it left is untouched."""
    assert main(told()) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").iterdir() if not path.name.startswith(".")}
    assert main(told("--logging_steps", "2", "--overwrite_output_dir", "true")) == 0
    assert "run holds this run, finished: there is nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("left", [None, "---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n"])
def test_a_card_that_a_kill_left_out_is_written_by_the_next_start(folder: Path, left: str | None) -> None:
    """The card comes after what says that the run is finished; beside an adapter PEFT's empty one lies in its place."""
    assert main(told()) == 0
    card = Path("run/README.md")
    before = card.read_bytes()
    card.unlink()
    if left is not None:
        card.write_text(left, encoding="utf-8")
    assert main(told()) == 0
    assert card.read_bytes() == before
    card.write_text("My own words.", encoding="utf-8")
    assert main(told()) == 0
    assert card.read_text(encoding="utf-8") == "My own words."


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--loss.beta", "0.5"), "loss.beta: 0.1 -> 0.5"),
        (("--max_steps", "3"), "max_steps: 2 -> 3"),
        (("--learning_rate", "1e-3"), "learning_rate: 1e-06 -> 0.001"),
        (("--max_length", "16"), "max_length: 1024 -> 16"),
        (("--per_device_train_batch_size", "2"), "per_device_train_batch_size: 4 -> 2"),
        ((), "the files of train data"),
    ],
)
def test_another_finished_run_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], found: str
) -> None:
    """Of another config, or of the same with other rows in the file; nothing is loaded, and the model stays."""
    assert main(told()) == 0
    before = model_bytes()
    if not words:
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8, seed=5)))
    assert main(told(*words)) == 2
    assert (
        f"output_dir: run holds a finished run of another config or other data ({found}); set another output_dir, or "
        "overwrite_output_dir: true to put it aside until this run is whole, and then delete it"
    ) in capsys.readouterr().err
    assert model_bytes() == before


def test_an_overwritten_run_stays_until_the_new_one_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that fails leaves the old one aside, and the next that is finished deletes it."""
    assert main(told("--learning_rate", "1e-3")) == 0
    before = model_bytes()
    other = ("--overwrite_output_dir", "true", "--learning_rate", "1e-2")
    assert main(told(*other, "--model.name_or_path", "no/such/model")) == 2
    assert model_bytes("run/.replaced-run-1") == before
    assert not Path("run/model.safetensors").exists()
    assert main(told(*other)) == 0
    assert not Path("run/.replaced-run-1").exists()
    assert model_bytes() != before
    assert load_config("run/config.yaml").training["learning_rate"] == 1e-2


def test_what_else_lies_in_the_folder_is_no_run_and_stays(folder: Path) -> None:
    """A run that began in a folder of work, of other runs and of a repository takes its own files back, and no more."""
    assert main(told("--learning_rate", "1e-3")) == 0
    others = (
        "notes.txt",
        "README.md",
        "dpo/model.safetensors",
        ".git/HEAD",
        "config.py",
        "models/README.md",
        "data.jsonl",
    )
    for name in others:
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).write_text("mine")
    assert main(told("--overwrite_output_dir", "true", "--learning_rate", "1e-2")) == 0
    assert [Path("run", name).read_text() for name in others] == ["mine"] * len(others)
    assert load_config("run/config.yaml").training["learning_rate"] == 1e-2
    assert not Path("run/.replaced-run-1").exists()


def test_a_run_is_known_by_its_code_and_its_models_too(
    folder: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same names, but a loss that was edited, and weights that were trained again; a model lost is made again."""
    lines = ["from alignlab.losses import Needs", "def mine(batch, beta=0.1):"]
    lines += ["    return (1 - beta * batch.chosen.logps.sum(-1)).relu()", "mine.needs = Needs()"]
    Path("mine.py").write_text("\n".join(lines))
    shutil.copytree(model_path, "start")
    words = told("--loss.name", "mine.py:mine", "--model.name_or_path", "start", "--save_strategy", "steps")
    assert main([*words, "--save_steps", "1"]) == 0
    before = model_bytes()

    Path("mine.py").write_text("\n".join(lines).replace("1 - beta", "2 - beta"))
    assert main(words) == 2
    assert "other data (the code of loss.name); set" in capsys.readouterr().err
    Path("mine.py").write_text("\n".join(lines))

    weights = Path("start/model.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-9000] + bytes(9000))
    assert main(words) == 2
    assert "other data (the files of model.name_or_path); set" in capsys.readouterr().err
    assert main([*words, "--max_steps", "3", "--resume_from_checkpoint", "auto"]) == 2
    assert (
        "resume_from_checkpoint: run/checkpoint-2: cannot go on: the files of model.name_or_path are not those that "
        "the run began with; start a new run, in another output_dir"
    ) in capsys.readouterr().err
    weights.write_bytes(kept)

    Path("run/model.safetensors").unlink()
    assert main([*words, "--resume_from_checkpoint", "auto"]) == 0
    assert model_bytes() == before


def test_a_folder_with_a_model_of_nobody_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    assert main(told()) == 2
    assert "output_dir: run holds a model (config.json) that is of no run of this config" in capsys.readouterr().err
    assert Path("run/config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            ("--ref_model_name_or_path", "/no/model"),
            "the model of '/no/model' cannot be loaded: there is no such folder",
        ),
        (
            ("--resume_from_checkpoint", "empty"),
            "resume_from_checkpoint: empty is no checkpoint: it has no trainer_state",
        ),
    ],
)
def test_what_is_not_there_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], found: str
) -> None:
    Path("empty").mkdir()
    assert main(told(*words)) == 2
    assert f"alignlab: error: {found}" in capsys.readouterr().err


def test_a_run_that_goes_on_keeps_the_older_config(folder: Path) -> None:
    """Two steps, then a third: config.yaml says the latter, config.1.yaml the former."""
    saving = ("--save_strategy", "steps", "--save_steps", "1", "--lr_scheduler_type", "constant")
    assert main(told(*saving)) == 0
    assert main(told(*saving, "--max_steps", "3", "--resume_from_checkpoint", "auto")) == 0
    assert load_config("run/config.yaml").training["max_steps"] == 3
    assert load_config("run/config.1.yaml").training["max_steps"] == 2
    assert json.loads(Path("run/metrics.1.json").read_text())["train_loss"] > 0
    assert json.loads(Path("run/trainer_state.json").read_text())["global_step"] == 3


def test_a_full_disk_at_the_end_names_what_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may be larger than 60 kB, which the model is: no model, no file of one, and one line that says so."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        assert main(told()) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("alignlab: error: model: run: the model could not be saved (")
    assert error.endswith(
        "Whole in run: nothing of the end; missing: model, trainer_state.json, environment.json, metrics.json, "
        "README.md"
    )
    assert not [path.name for path in Path("run").iterdir() if "token" in path.name or "model" in path.name]
    assert main(told()) == 0
    assert len(model_bytes()) > 60_000


# ---- killed on the way -----------------------------------------------------------------------------------------------


def test_killed_while_a_run_is_put_aside_the_run_is_back(folder: Path) -> None:
    """Half of it stayed in the folder, and a part of it, a merged model say, for good, beside what ran next."""
    assert main(told("--learning_rate", "1e-3")) == 0
    Path("run/merged").mkdir()
    Path("run/merged/config.json").write_text("{}")
    run, asked = Path("run"), ["--output_dir", "run", "--learning_rate"]
    old, new = (on_machine(load_config("base.yaml", [*asked, rate])) for rate in ("1e-3", "1e-2"))
    new.training["overwrite_output_dir"] = True
    digests, names = input_digests(old), sorted(path.name for path in run.iterdir())
    for number in itertools.count():
        if not dies_at(number, lambda: is_done(new, run, digests)):
            break
        assert is_done(old, run, digests)
        assert sorted(path.name for path in run.iterdir()) == names
    assert number > len(names) - 2
    assert [path.name for path in run.glob(".rep*")] == [".replaced-run-1"]
    assert not [path.name for path in run.iterdir() if not path.name.startswith(".")]


def test_killed_while_an_older_config_is_kept_its_metrics_are_not_taken_for_those_of_the_next(tmp_path: Path) -> None:
    """With the config first, metrics of the shorter run stayed, and the longer one was taken for finished later on."""
    for number in itertools.count():
        run = tmp_path / str(number)
        run.mkdir()
        for name in ("config.yaml", "metrics.json"):
            (run / name).write_text("old")
        died = dies_at(number, lambda run=run: keep_older(run, "new"))
        assert (run / "config.yaml").exists() or not (run / "metrics.json").exists()
        keep_older(run, "new")
        assert sorted(path.name for path in run.iterdir()) == ["config.1.yaml", "metrics.1.json"]
        if not died:
            break
    assert number == 2


def test_killed_before_its_card_a_longer_run_has_not_that_of_the_shorter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = ("--save_strategy", "steps", "--save_steps", "1", "--lr_scheduler_type", "constant")
    longer = told(*saving, "--max_steps", "3", "--resume_from_checkpoint", "auto")
    assert main(told(*saving)) == 0

    def killed(folder: Path) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(ending, "_write_card", killed)
        with pytest.raises(Died):
            main(longer)
    assert main(longer) == 0
    assert "| max_steps | `3` |" in Path("run/README.md").read_text()


def test_killed_while_it_is_uploaded_a_run_is_uploaded_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for finished, with status 0, and never got to the hub."""
    calls: list[str] = []

    def upload(repo_id: str, **options: Any) -> Any:
        calls.append(repo_id)
        if len(calls) == 1:
            raise Died
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def place(name: str, **options: Any) -> Any:
        return SimpleNamespace(repo_id=f"me/{name}")

    def init(trainer: Any, *args: Any, **options: Any) -> None:
        trainer.hub_model_id, trainer.push_in_progress = "me/run", None

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", init)
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.create_repo", place)
    pushed = told("--push_to_hub", "true", "--hub_strategy", "end")
    with pytest.raises(Died):
        main(pushed)
    for _ in range(2):
        assert main(pushed) == 0
        assert calls == ["me/run"] * 2
