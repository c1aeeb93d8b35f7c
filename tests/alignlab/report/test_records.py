"""What is read of a run folder, and what runs are called."""

from alignlab.report.records import read_run, read_runs, short_names


def test_values_that_are_no_numbers_are_counted(fake_run, tmp_path):
    values = [1.0, float("nan"), 3.0, float("inf")]
    log = [{"step": step, "loss": value, "note": "words"} for step, value in enumerate(values, 1)]
    run = read_run(fake_run(tmp_path / "run", log))
    assert run.series["loss"].values.tolist() == [1.0, 3.0]
    assert run.series["loss"].steps.tolist() == [1, 3]
    assert run.not_finite == {"loss": 2}
    assert "note" not in run.series
    assert not run.finished


def test_a_run_that_has_not_ended_is_read_from_its_newest_checkpoint(fake_run, tmp_path):
    for step in (9, 10):
        fake_run(tmp_path / "run" / f"checkpoint-{step}", [{"step": step, "loss": 1.0}])
    assert read_run(tmp_path / "run").step == 10


def test_a_run_that_goes_on_where_a_shorter_one_ended_is_read_from_its_newest_checkpoint(fake_run, tmp_path):
    """The shorter one's state stood for it until its last step, and a report said that nothing had happened."""
    fake_run(tmp_path / "run", [{"step": 2, "loss": 1.0}])
    (tmp_path / "run" / "metrics.json").unlink(missing_ok=True)
    for step in (2, 3):
        fake_run(tmp_path / "run" / f"checkpoint-{step}", [{"step": step, "loss": 1.0}])
        assert read_run(tmp_path / "run").step == step
    (tmp_path / "run" / "metrics.json").write_text("{}")
    assert read_run(tmp_path / "run").step == 2


def test_names_tell_runs_apart(fake_run, tmp_path):
    for name in ("x/dpo", "y/dpo"):
        fake_run(tmp_path / name, [{"step": 1, "loss": 1.0}])
    runs = read_runs([tmp_path / "x" / "dpo", tmp_path / "y" / "dpo", tmp_path / "x" / "dpo"])
    assert [run.name for run in runs] == ["x/dpo", "y/dpo"]
    assert short_names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
