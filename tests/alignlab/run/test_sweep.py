"""Sweeps: which runs a file means, and what is refused before any of them."""

from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.config.parser import read_yaml, write_yaml
from alignlab.run.sweep import load_sweep


def test_every_point_of_the_grid_with_every_listed_run(folder, write):
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


def test_a_grid_alone_and_names_that_are_files(folder, write):
    path = Path("pairs.jsonl").resolve()
    sweep = load_sweep(write(grid={"data.train": [str(path)], "learning_rate": [1e-6, 2e-6]}))
    assert all("/" not in run.name and len(run.name) <= 120 for run in sweep.runs)
    assert len({run.name for run in sweep.runs}) == 2


def refused(capsys, file, *words):
    assert main(["sweep", file, *words]) == 2
    return capsys.readouterr().err.removeprefix("alignlab: error: ").strip()


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
        ({"runs": [{"name": "../other"}]}, "runs[0].name: expected a name for a folder of at most 120 characters, "),
        ({"runs": [{"name": "a/b"}]}, "without / and no dot in front, other than configs; found 'a/b'"),
        ({"runs": [{"name": "configs"}], "grid": {}}, "runs[0].name: expected a name for a folder"),
        ({"runs": [{"name": "x" * 121}]}, "runs[0].name: expected a name for a folder"),
        ({"runs": [{"name": 3}]}, "runs[0].name: expected a name for a folder of at most 120 characters, "),
        ({"grid": {"output_dir": ["a", "b"]}}, "grid.output_dir: each run has a folder of its own in the sweep's"),
        ({"set": {"output_dir": "a"}}, "set.output_dir: each run has a folder of its own in the sweep's"),
        ({"runs": [{1: 2}]}, "runs[0].1: a key is text"),
        ({"grid": {"learning_rate.x": [1]}, "set": {"learning_rate": 1.0}}, "learning_rate.x: learning_rate is 1.0"),
    ],
)
def test_a_bad_sweep_is_refused_with_its_key(folder, write, capsys, changes, message):
    assert message in refused(capsys, write(**changes))
    assert not Path("sweep").exists()


def test_another_run_in_the_folder_is_refused(folder, write, capsys):
    """The seed is the same and so is the name, but the learning rate came from the config, which has changed."""
    file = write(grid={"seed": [0]})
    assert main(["sweep", file, "--in-process"]) == 0
    base = read_yaml(Path("base.yaml"))
    Path("base.yaml").write_text(write_yaml({**base, "learning_rate": 0.5}))
    assert main(["sweep", file]) == 2
    error = capsys.readouterr().err
    assert "holds a run with learning_rate: 1e-06, and the sweep says 0.5; choose another output_dir" in error
