"""Trackers by their real packages: one run of theirs for one of ours, with its config and its report."""

import json
import sqlite3
from pathlib import Path

import pytest
from making import make_rows
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from alignlab import load_config, train
from alignlab.run import trackers

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, model_path, monkeypatch):
    """Trains three steps with a tracker, evaluates, and returns the run's folder; a second call resumes or goes on."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")

    def start(tracker, **options):
        values = {
            "loss": {"name": "ipo", "beta": 0.25},
            "model": {"name_or_path": str(model_path)},
            "data": {"train": "pairs.jsonl", "eval": "pairs.jsonl"},
            "output_dir": "run",
            "report_to": [tracker],
            "run_name": "mine",
            "max_steps": 3,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "report_samples": 0,
            "disable_tqdm": True,
        }
        return train(load_config(values | options))

    return start


def test_mlflow_has_one_run_over_a_resume(run, tmp_path, caplog):
    """Where the server has lost it, a new one is begun, and that is said."""
    import mlflow

    from alignlab.run.trackers import _mlflow_run

    run("mlflow", max_steps=2)
    folder = run("mlflow", resume_from_checkpoint="auto")
    assert mlflow.active_run() is None
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        ((identity, name, status),) = database.execute("select run_uuid, name, status from runs").fetchall()
        tags = dict(database.execute("select key, value from tags"))
        steps = [step for (step,) in database.execute("select step from metrics where key = 'loss' order by step")]
        final = database.execute("select count(*) from metrics where key = 'eval_loss' and step = 3").fetchone()
    assert (name, status, tags["loss"]) == ("mine", "FINISHED", "ipo")
    assert steps == [1, 2, 3]
    assert final[0] >= 1  # the evaluation after the last step is in the same run
    artifacts = {item.path for item in mlflow.MlflowClient().list_artifacts(identity)}
    assert artifacts == {"config.yaml", "report.html"}
    assert "name: ipo" in mlflow.artifacts.load_text(f"runs:/{identity}/config.yaml")
    assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": identity}

    lost = "0" * 32
    (folder / "trackers.json").write_text(json.dumps({"mlflow": lost}), encoding="utf-8")
    with caplog.at_level("WARNING", "alignlab"):
        opened = _mlflow_run(folder, "other")
    mlflow.end_run()
    assert (opened.info.run_name, opened.info.run_id in (lost, identity)) == ("other", False)
    assert f"mlflow cannot go on in run {lost}, a new one is begun: Run with id={lost} not found" in caplog.text


class Dying(TrainerCallback):  # type: ignore[misc]
    """A tracker whose server is gone after its first log."""

    seen: tuple[str, ...] = ()

    def on_log(self, args, state, control, **kwargs):
        Dying.seen += (f"log {state.global_step}",)
        if state.global_step > 1:
            raise ConnectionError("no route to host")

    def on_train_end(self, args, state, control, **kwargs):
        Dying.seen += ("end",)


def test_a_tracker_that_dies_ends_no_run(run, monkeypatch, caplog):
    """Steps 2 and 3, the end of training and the last evaluation fail; the first failure and their number are said."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "dying", Dying)
    with caplog.at_level("WARNING", "alignlab"):
        folder = run("dying", report=False)
    assert (folder / "metrics.json").is_file()
    assert Dying.seen == ("log 1", "log 2", "log 3", "log 3", "end", "log 3")
    told = [record.getMessage() for record in caplog.records if "report_to" in record.getMessage()]
    assert told == [
        "report_to: dying failed at step 2, and training goes on: ConnectionError: no route to host",
        "report_to: dying failed 4 times, from step 2 to 3",
    ]


def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at/all")
    with pytest.raises(ValueError, match=r"^report_to: mlflow did not start: Unsupported"):
        run("mlflow")
    assert not (tmp_path / "run" / "trainer_state.json").exists()


def test_a_tracker_that_starts_with_training_is_named(run, monkeypatch):
    """trackio and its like open their run with the first step only."""

    class Late(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "late", Late)
    with pytest.raises(ValueError, match=r"^report_to: late did not start: ConnectionError: no route to host"):
        run("late")


def test_a_tracker_that_fails_after_its_start_is_ended(run, monkeypatch):
    import mlflow

    monkeypatch.setattr(mlflow, "set_tag", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"^report_to: mlflow did not start: ZeroDivisionError"):
        run("mlflow")
    assert mlflow.active_run() is None


def test_a_tracker_that_fails_at_the_end_ends_no_run(run, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "_written", lambda *_: 1 / 0)
    with caplog.at_level("ERROR", "alignlab"):
        assert (run("tensorboard") / "metrics.json").is_file()
    assert "tensorboard: the run is over, but the tracker could not be told its end" in caplog.text


def test_a_run_that_fails_has_failed_in_mlflow_too(run, tmp_path, monkeypatch):
    from alignlab.training import PreferenceTrainer

    monkeypatch.setattr(PreferenceTrainer, "training_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FAILED",)]


def test_a_run_that_the_caller_has_opened_is_the_callers(run):
    import mlflow

    with mlflow.start_run(run_name="outer") as outer:
        run("mlflow", report=False)
        assert mlflow.active_run().info.run_id == outer.info.run_id


def test_wandb_offline(run, tmp_path):
    import wandb

    run("wandb")
    assert wandb.run is None  # ended
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (stored,) = folder.glob("*.wandb")
    content = stored.read_bytes()
    assert b"eval/loss" in content
    assert b'"name": "ipo"' in content or b'"name":"ipo"' in content
    assert list((folder / "files" / "media" / "html").glob("report_*.html"))


def test_trackio_on_this_disk(run, tmp_path):
    run("trackio", project="preferences")
    with sqlite3.connect(tmp_path / "trackio" / "preferences.db") as database:
        names = {name for (name,) in database.execute("select distinct run_name from metrics")}
        logged = [json.loads(text) for (text,) in database.execute("select metrics from metrics order by id")]
        config = json.loads(database.execute("select config from configs").fetchone()[0])
    assert names == {"mine"}
    assert any("eval/loss" in entry for entry in logged)
    assert config["alignlab"]["loss"] == {"name": "ipo", "beta": 0.25}
    assert any("report.html" in json.dumps(entry.get("report", "")) for entry in logged)


def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run("tensorboard")
    (where,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(where)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Scalars("eval/loss")[-1].step == 3
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "name: ipo" in texts["config/text_summary"]
    assert texts["report/text_summary"] == str((Path.cwd() / "run" / "report.html").resolve())


@pytest.mark.parametrize("held", ["[1]", "{", '{"wandb": "w", "mlflow": 3}'])
def test_ids_that_cannot_be_read_are_none_and_are_written_anew(held, tmp_path):
    """A list there ended the run: mlflow did not start, 'list' object has no attribute 'get'."""
    (tmp_path / "trackers.json").write_text(held, encoding="utf-8")
    assert trackers._known(tmp_path, "mlflow") is None
    trackers._remember(tmp_path, "mlflow", "new")
    assert trackers._known(tmp_path, "mlflow") == "new"
    assert trackers._known(tmp_path, "wandb") == ("w" if "w" in held else None)
