"""Means over runs that differ in their seeds."""

from alignlab.report.records import read_run
from alignlab.report.tables import over_seeds


def test_means_over_seeds(fake_run, tmp_path):
    """0.6 and 0.8: mean 0.7, s = 0.1 * sqrt(2), error s / sqrt(2) = 0.1."""
    runs = []
    for name, seed, rate, accuracy in (("a", 0, 1.0, 0.6), ("b", 1, 1.0, 0.8), ("c", 0, 2.0, 0.5)):
        found = {"eval_rewards/accuracies": accuracy}
        folder = fake_run(tmp_path / name, [{"step": 1}], found, seed=seed, learning_rate=rate, output_dir=name)
        runs.append(read_run(folder))
    head, rows = over_seeds(runs)
    assert head == ["setting", "runs", "accuracy, held out"]
    assert rows == [("learning_rate: 1", 2, "0.7 ± 0.1"), ("learning_rate: 2", 1, "0.5")]
    assert over_seeds(runs[1:]) == ([], [])
