"""Reports: what a run leaves, what the page says of it, runs side by side, and samples that change no training."""

import json
import re

import pytest
from making import make_rows

from alignlab import load_config, train
from alignlab.cli import main
from alignlab.report.charts import run_charts
from alignlab.report.page import compare_runs
from alignlab.report.records import read_run
from alignlab.report.sicknesses import kl_metric

GROUPS = ("a", "b", "c")


def config_of(folder, model_path, **changes):
    """A group-robust run of eight steps on 40 pairs in three groups, evaluated twice."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(40, groups=GROUPS)), encoding="utf-8")
    values = {
        "loss": {"name": "group_robust", "base": {"name": "dpo", "beta": 0.5}},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(path), "eval_rows": 8},
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_samples": 2,
    }
    return load_config(values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_path):
    """The folder of a real run, with its report."""
    return train(config_of(tmp_path_factory.mktemp("report"), model_path))


def log_of(folder):
    """The log without what a clock says."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    timed = ("_runtime", "_per_second", "train_loss")
    return [
        {k: v for k, v in entry.items() if not k.endswith(timed) and not k.startswith(("speed/", "memory/"))}
        for entry in log
    ]


# ---- one run -----------------------------------------------------------------------------------------------------


def test_a_run_writes_its_report_with_plots_and_samples(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    for heading in ("Health", "Curves", "Samples", "Config", "Data", "Environment"):
        assert f">{heading}</h2>" in page
    charts = run_charts(read_run(folder))
    plots = {path.stem for path in (folder / "plots").glob("*.png")}
    assert {"loss", "rewards", "displacement", "group_accuracy", "group_weight", "lengths"} <= plots
    assert plots == {chart.key for chart in charts}
    assert page.count("<svg ") == len(charts)
    samples = json.loads((folder / "samples.json").read_text())
    assert len(samples["rows"]) == 2
    for row in samples["rows"]:
        assert 0 < row["before_tokens"] <= samples["max_new_tokens"] == 128
        assert 0 < row["after_tokens"] <= 128


def test_the_page_asks_for_nothing(folder):
    """No address in it leads anywhere, and the policy that it sets forbids scripts and requests."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"""(?:src|href)=["']([^"'#][^"']*)""", page)) <= {"data:,"}
    assert "<script" not in page
    assert "@import" not in page
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in page


def test_curves_are_those_of_the_log(folder):
    run, log = read_run(folder), log_of(folder)
    for name in ("loss", "rewards/margins", "group/a/weight", "eval_rewards/accuracies"):
        assert run.series[name].values.tolist() == [entry[name] for entry in log if name in entry]
        assert run.series[name].steps.tolist() == [entry["step"] for entry in log if name in entry]
    assert (run.step, run.max_steps, run.finished, run.loss) == (8, 8, True, "group_robust over dpo")
    (displacement,) = [chart for chart in run_charts(run) if chart.key == "displacement"]
    first = run.series["logps/chosen"].values[0]
    assert displacement.lines[0].y.tolist() == [entry["logps/chosen"] - first for entry in log if "loss" in entry]


def test_samples_leave_training_as_it_is(folder, tmp_path, model_path):
    """The same run without samples logs the same numbers, bit for bit."""
    without = train(config_of(tmp_path, model_path, report_samples=0))
    assert not (without / "samples.json").exists()
    assert log_of(without) == log_of(folder)


def test_without_a_report_nothing_is_written(tmp_path, model_path):
    folder = train(config_of(tmp_path, model_path, report=False, max_steps=1, eval_strategy="no"))
    assert not [name for name in ("report.html", "plots", "samples.json") if (folder / name).exists()]


def test_a_report_that_cannot_be_written_leaves_the_run_whole(tmp_path, model_path, caplog):
    """A file stands where the folder of plots belongs: the model is saved, and the log says what is missing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plots").write_text("in the way")
    folder = train(config_of(tmp_path, model_path, max_steps=1, eval_strategy="no"))
    assert (folder / "model.safetensors").is_file()
    assert (folder / "metrics.json").is_file()
    assert "the run is complete, but its report could not be written" in caplog.text


@pytest.mark.slow
def test_a_resumed_run_keeps_the_answers_from_before_its_first_step(tmp_path, model_path):
    saved = {"save_strategy": "steps", "save_steps": 4}
    folder = train(config_of(tmp_path, model_path, max_steps=4, **saved))
    before = json.loads((folder / "samples.json").read_text())["rows"]
    train(config_of(tmp_path, model_path, resume_from_checkpoint="auto", **saved))
    after = json.loads((folder / "samples.json").read_text())["rows"]
    assert [row["before"] for row in after] == [row["before"] for row in before]
    assert read_run(folder).step == 8


# ---- hostile and broken ------------------------------------------------------------------------------------------

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\u202etxt.exe\x00$\\frac{"


def test_hostile_names_are_text(fake_run, tmp_path):
    log = [{"step": step, "loss": 1.0, f"group/{HOSTILE}/accuracy": 0.5, f"{HOSTILE}/x": 1.0} for step in (1, 2)]
    run = fake_run(tmp_path / "run", log, {}, run_name=HOSTILE)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</style>") == 1 + page.count("<style type=")  # the page's own, and those of matplotlib
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "⟨U+202E⟩" in page
    assert "&lt;script&gt;" in page


def test_errors_say_what_was_found(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing: no run" in capsys.readouterr().err
    (tmp_path / "trainer_state.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    assert "trainer_state.json: not JSON" in capsys.readouterr().err


# ---- several runs ------------------------------------------------------------------------------------------------


def test_runs_side_by_side(fake_run, tmp_path, capsys):
    """Accuracies .6 .8 .7 at KLs of 1 2 3: the third has more KL and less accuracy than the second."""
    for index, accuracy in enumerate((0.6, 0.8, 0.7)):
        found = {"eval_loss": 0.5, "eval_rewards/accuracies": accuracy, "eval_generation/kl": index + 1.0}
        log = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
        fake_run(tmp_path / "runs" / f"r{index}", log, found, learning_rate=0.1 * index)
    output = tmp_path / "all.html"
    assert main(["report", str(tmp_path / "runs"), "--output", str(output), "--plots"]) == 0
    assert capsys.readouterr().out == f"{output}: 3 runs\n"
    page = output.read_text(encoding="utf-8")
    assert "On the Pareto front, by rising cost: r0, r1." in page
    assert '<th scope="row">learning_rate</th>' in page
    assert (tmp_path / "plots" / "accuracy_kl.png").is_file()


def test_figures_of_alignlab_eval_join_the_run(fake_run, tmp_path):
    """`alignlab eval ... --output RUN/eval.json` gives KL and win rate, which two runs make a frontier of."""
    for index, (kl, wins) in enumerate(((1.0, 0.5), (2.0, 0.7))):
        folder = fake_run(tmp_path / f"r{index}", [{"step": 1, "loss": 1.0}], {})
        answers = {"kl": {"exact": kl, "k1": 9.0}, "win": {"win_rate": wins, "low": None}, "answers": 8}
        (folder / "eval.json").write_text(json.dumps({"model": "m", "answers": answers}))
    run = read_run(tmp_path / "r1")
    assert kl_metric(run) == ("eval_generation/kl", 2.0)
    page = compare_runs([tmp_path / "r0", tmp_path / "r1"], tmp_path / "all.html").read_text(encoding="utf-8")
    assert "<h3>Wins against KL</h3>" in page
    assert "On the Pareto front, by rising cost: r0, r1." in page


def test_a_comparison_needs_no_config(fake_run, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for one in folders:
        fake_run(one, [{"step": 1, "loss": 1.0}])
        (one / "config.yaml").unlink()
    assert compare_runs(folders, tmp_path / "out.html").is_file()
