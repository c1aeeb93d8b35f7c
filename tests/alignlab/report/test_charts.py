"""Which curves stand in a chart."""

from alignlab.report.charts import run_charts
from alignlab.report.records import read_run


def test_several_evaluation_sets(fake_run, tmp_path):
    """Held out is what the first set says; the charts have a line for each."""
    log = [{"step": s, "loss": 1.0, "rewards/accuracies": 0.5} for s in (1, 2)]
    for name, accuracy in (("easy", 0.9), ("hard", 0.6)):
        log += [{"step": s, f"eval_{name}_loss": 1.0, f"eval_{name}_rewards/accuracies": accuracy} for s in (1, 2)]
    run = read_run(fake_run(tmp_path / "run", log))
    assert run.evaluation_sets == ["eval_easy_", "eval_hard_"]
    assert run.held_out("rewards/accuracies") == 0.9
    (chart,) = [one for one in run_charts(run) if one.key == "accuracy"]
    assert [(line.label, line.y.tolist()) for line in chart.lines] == [
        ("training", [0.5, 0.5]),
        ("held out: easy", [0.9, 0.9]),
        ("held out: hard", [0.6, 0.6]),
    ]
