"""Searches with Optuna itself: what is drawn, shared, given up, gone on with, and refused before any trial."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dying import Died

from alignlab.cli import main
from alignlab.config.parser import read_yaml, write_yaml
from alignlab.run import trial as trials
from alignlab.run.launcher import run_process
from alignlab.run.search import load_search
from alignlab.run.study import Study
from alignlab.run.worker import run_search

ROOT = Path(__file__).resolve().parents[3]
RATES = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
LOSS = {"metric": "eval_loss", "direction": "minimize"}


@pytest.fixture
def ask(folder):
    """Writes a search over the config of two steps, which evaluates behind each; returns its file's name."""
    base = read_yaml(Path("base.yaml"))
    held_out = {"data": {**base["data"], "eval": "pairs.jsonl"}, "eval_strategy": "steps", "eval_steps": 1}
    Path("base.yaml").write_text(write_yaml({**base, **held_out, "disable_tqdm": True}))

    def write(output="search", extra=None, **search):
        values = {"trials": 3, "space": RATES, "sampler": "random", **LOSS, **search}
        kept = {key: value for key, value in values.items() if value is not None}
        file = {"config": "base.yaml", "output_dir": output, "search": kept, **(extra or {})}
        Path(f"{output}.yaml").write_text(write_yaml(file))
        return f"{output}.yaml"

    return write


def states(search):
    return [(one.number, one.state.name) for one in Study(search).trials()]


def params(search):
    return [one.params["learning_rate"] for one in Study(search).trials()]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "tpee"}, "search.sampler: expected one of tpe, random, found text 'tpee'"),
        ({"space": {}}, "search.space: empty; say what to draw"),
        ({"space": None}, "search.space: required, and not given"),
        ({"trials": 0}, "search.trials: expected at least 1, found 0"),
        ({"trails": 4}, "search.trails: unknown key; did you mean search.trials?"),
        ({"seed": -1}, "search.seed: expected at least 0, found -1"),
        ({"direction": None}, "search.direction (maximize or minimize): metric and direction are given together"),
        ({"space": {"learning_rat": {"choices": [1.0]}}}, "learning_rat: unknown key; did you mean learning_rate?"),
        ({"space": {"loss.beta": {"low": -1.0, "high": 1.0}}}, "search.space.loss.beta at -1.0: loss.beta"),
        ({"space": {"seed": 3}}, "search.space.seed: expected {low: .., high: ..} or {choices: [..]}, found 3"),
        (
            {"space": {"seed": {"lo": 3, "high": 4}}},
            "search.space.seed.lo: unknown key; did you mean",
        ),
        ({"space": {"seed": {"low": 3}}}, "search.space.seed.high: expected a number, found None"),
        ({"space": {"seed": {"choices": []}}}, "search.space.seed.choices: expected a list of values, found []"),
        ({"space": {"seed": {"choices": [1, 1]}}}, "search.space.seed.choices: a value stands there twice: [1, 1]"),
        ({"space": {"seed": {"low": 3, "high": 1}}}, "search.space.seed: expected low <= high, found 3 and 1"),
        ({"space": {"seed": {"low": 0, "high": 5, "step": 2}}}, "search.space.seed: The distribution is specified by"),
        ({"space": {"seed": {"low": 0, "high": 5, "step": 0.5}}}, "search.space.seed.step: expected a whole number"),
        ({"prune": {"startup": 1}}, "search.prune.startup: unknown key; did you mean search.prune.startup_trials?"),
        ({"prune": {"startup_trials": 0}}, "search.prune.startup_trials: expected at least 1, found 0"),
        ({"prune": True, "metric": "train_loss"}, "search.prune: needs a metric of evaluations"),
        (
            {"prune": True, "extra": {"set": {"eval_strategy": "no"}}},
            "search.prune: needs evaluations on the way, found eval_strategy: no, eval_steps: 1",
        ),
        (
            {"prune": True, "extra": {"set": {"eval_steps": None}}},
            "search.prune: needs evaluations on the way, found eval_strategy: steps, eval_steps: None; say",
        ),
        (
            {"extra": {"set": {"data": {"train": "pairs.jsonl"}, "eval_strategy": "no"}}},
            "search.metric: eval_loss is never logged: nothing to evaluate on",
        ),
        ({"extra": {"grid": {"seed": [0]}}}, "grid: a search draws its runs itself"),
        ({"extra": {"lancher": "x"}}, "lancher: unknown key; did you mean launcher?"),
        ({"extra": {"search": [1]}}, "search: expected a mapping, found [1]"),
    ],
)
def test_a_bad_search_is_refused_with_its_key(ask, capsys, changes, message):
    assert main(["sweep", ask(**changes), "--in-process"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("search").exists()


def test_options_of_a_search_are_refused_elsewhere(ask, write, capsys):
    assert main(["sweep", write(), "--workers", "2"]) == 2
    assert "--workers: sweep.yaml has no search" in capsys.readouterr().err
    assert main(["sweep", ask(), "--workers", "2"]) == 2
    assert "--workers: of --slurm" in capsys.readouterr().err


def test_a_missing_package_is_named_first(ask, monkeypatch):
    monkeypatch.setattr("alignlab.run.search.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Optuna, which is not installed: pip install 'alignlab\[search\]'"):
        load_search(ask(space={}))


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_ranges_steps_and_choices_become_configs(ask):
    """A choice may be a block; whole ends draw whole numbers, in steps from the low one."""
    losses = [{"name": "ipo", "beta": 0.5}, {"name": "dpo", "beta": 0.1}]
    space = {**RATES, "loss": {"choices": losses}, "gradient_accumulation_steps": {"low": 1, "high": 7, "step": 3}}
    search = load_search(ask(trials=12, space=space))
    study, seen = Study(search), []
    while (taken := study.take()) is not None:
        config = search.run(taken.number, taken.drawn).config
        seen.append((config.loss["name"], config.training["gradient_accumulation_steps"]))
        assert 1e-5 <= config.training["learning_rate"] <= 1e-2
        assert config.loss in losses
        study.fail(taken.number, "only drawn")
        taken.held.release()
    assert len(seen) == 12
    assert {name for name, _ in seen} == {"ipo", "dpo"}
    assert {steps for _, steps in seen} == {1, 4, 7}


def drawn(search, value=lambda rate: rate, workers=1, stop_at=None):
    """Draws trials whose value is a function of what was drawn; workers take turns, and a study is opened again."""
    studies, number = [Study(search) for _ in range(workers)], 0
    while (taken := studies[number % workers].take()) is not None:
        number += 1
        studies[0]._study.tell(taken.number, value(taken.drawn["learning_rate"]))
        taken.held.release()
        if number == stop_at:
            studies = [Study(search) for _ in range(workers)]
    return params(search)


def test_one_seed_is_one_search_killed_or_not_by_one_worker_or_in_turns(ask):
    """TPE is past its ten random trials here; another seed draws others."""
    whole = drawn(load_search(ask("a", sampler="tpe", trials=13)))
    assert drawn(load_search(ask("b", sampler="tpe", trials=13)), stop_at=12) == whole
    assert drawn(load_search(ask("c", sampler="tpe", trials=13)), workers=2) == whole
    other = drawn(load_search(ask("d", sampler="tpe", trials=13, seed=1)))
    assert not set(other) & set(whole)
    assert statistics.median(whole[10:]) < statistics.median(whole[:10])  # it went to where the value is small


def test_two_workers_hold_two_trials_and_a_dead_ones_goes_on(ask):
    """A worker is gone where its lock is free: killed three times, its trial has failed; stopped, it has not."""
    search = load_search(ask(trials=2))
    first, second = Study(search), Study(search)
    one, two = first.take(), second.take()
    assert (one.number, two.number) == (0, 1)
    assert second.take() is None
    first.stopped(0)
    one.held.release()  # as its death would
    for _ in range(3):
        again = second.take()
        assert (again.number, again.drawn) == (0, one.drawn)
        again.held.release()
    assert second.take() is None
    assert states(search) == [(0, "FAIL"), (1, "RUNNING")]
    assert second.table()["trials"][0]["note"] == "its worker died 3 times"


def test_a_trial_stays_taken_while_the_run_that_its_killed_worker_began_is_starting(ask):
    """Before it had imported all it needs and held its folder, another worker began the trial a second time.

    One of the two then found the folder taken, and the trial was said to have failed.
    """
    search = load_search(ask())
    worker = os.fork()
    if not worker:
        try:
            taken = Study(search).take()
            code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
            run_process([sys.executable, "-c", code], Path("run.log"), taken.held)
        finally:
            os._exit(1)
    while not (log := Path("run.log")).is_file() or not log.read_text().endswith("\n"):
        time.sleep(0.01)
    run = psutil.Process(int(log.read_text()))
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    try:
        other = Study(search).take()
        assert other.number == 1
        other.held.release()
    finally:
        run.kill()
    while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    again = Study(search).take()
    assert again.number == 0
    again.held.release()


@pytest.mark.parametrize(("sampler", "drawn"), [("random", 0), ("random", 2), ("tpe", 1)])
def test_a_worker_that_is_killed_while_it_draws_leaves_a_trial_that_is_drawn_to_its_end(
    ask, drawn, sampler, monkeypatch
):
    """A trial without its values was run with those of the config, and counted as complete."""
    space = {**RATES, "weight_decay": {"low": 0.0, "high": 0.5}, "loss.beta": {"low": 0.01, "high": 1.0}}
    first = Study(load_search(ask("alone", space=space, sampler=sampler))).take()
    first.held.release()
    study = Study(load_search(ask("killed", space=space, sampler=sampler)))
    write, calls, hold, held = study._storage.set_trial_param, [], study._hold, []
    monkeypatch.setattr(study, "_hold", lambda number: held.append(hold(number)) or held[-1])

    def dying(*args, **kwargs):
        if len(calls) == drawn:
            raise Died
        calls.append(args)
        write(*args, **kwargs)

    monkeypatch.setattr(study._storage, "set_trial_param", dying)
    with pytest.raises(Died):
        study.take()
    held[-1].release()  # as its death would
    again = Study(load_search("killed.yaml")).take()
    assert (again.number, again.drawn) == (0, first.drawn)
    assert len(again.drawn) == 3
    assert Study(load_search("killed.yaml")).table()["trials"][0]["state"] == "running"
    again.held.release()


@pytest.mark.parametrize("left", ['{"op_code": 8, "tri', '{"op_code"'])
def test_half_a_line_of_the_journal_is_cut_off_before_the_next_is_written(ask, left, caplog):
    """A full disk or a death in the middle of a write leaves it; with the next line it made one that nobody reads."""
    search = load_search(ask())
    study = Study(search)
    taken = study.take()
    study.report(taken.number, 1, 0.5, last=False)
    with (search.folder / "study.journal").open("a") as journal:
        journal.write(left)
    study.report(taken.number, 2, 0.25, last=False)
    taken.held.release()
    (trial,) = Study(search).trials()
    assert trial.intermediate_values == {1: 0.5, 2: 0.25}
    assert "its last line was written by half, and is cut off" in caplog.text


def test_another_search_in_the_folder_is_refused_and_more_trials_are_not(ask):
    Study(load_search(ask()))
    Study(load_search(ask(trials=9, prune=True)))
    with pytest.raises(ValueError, match=r"search holds a search with search.seed: 0, and the file says 4; choose"):
        Study(load_search(ask(seed=4)))
    with pytest.raises(ValueError, match=r"holds a search with loss.name: 'dpo', and the file says 'sft'"):
        Study(load_search(ask(extra={"set": {"loss": {"name": "sft"}}})))


def test_importance_is_of_ten_finished_trials(ask):
    space = {**RATES, "seed": {"low": 0, "high": 100}}
    search = load_search(ask(trials=12, space=space))
    study = Study(search)
    for number in range(12):
        assert study._importance(number) == {} or number >= 10
        taken = study.take()
        study._study.tell(taken.number, taken.drawn["learning_rate"])
        taken.held.release()
    found = study.table()["importance"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["learning_rate"] > 0.5


# ---- trials that train -------------------------------------------------------------------------------------------


def test_a_search_trains_gives_up_what_is_worse_and_reports(ask, capsys):
    """The rule by hand, of what was reported behind step 1: worse than the median of the trials that ended.

    No thread is left that the process would wait for at its exit, and no process.
    """
    file = ask(trials=5, prune={"startup_trials": 1})
    threads, processes = set(threading.enumerate()), set(psutil.Process().children())
    assert main(["sweep", file, "--in-process"]) == 0
    assert [one.name for one in set(threading.enumerate()) - threads if not one.daemon] == []
    assert set(psutil.Process().children()) - processes == set()
    search, ended, expected = load_search(file), [], []
    trials = Study(search).trials()
    for one in trials:
        early = one.intermediate_values[1]
        worse = bool(ended) and early > statistics.median(ended)
        expected.append("PRUNED" if worse else "COMPLETE")
        ended += [] if worse else [early]
        assert sorted(one.intermediate_values) == ([1] if worse else [1, 2])
        assert (search.folder / f"trial-{one.number}" / "metrics.json").is_file() is not worse
    assert [one.state.name for one in trials] == expected
    assert set(expected) == {"PRUNED", "COMPLETE"}
    table = json.loads(Path("search/trials.json").read_text())
    values = {one.number: one.value for one in trials if one.state.name == "COMPLETE"}
    assert table["best"] == min(values, key=values.get)
    kept = json.loads(Path(f"search/trial-{table['best']}/metrics.json").read_text())
    assert kept["eval_loss"] == min(values.values())
    out = capsys.readouterr().out
    assert f"5 trials: {expected.count('COMPLETE')} complete, {expected.count('PRUNED')} pruned\n" in out
    assert "given up at step 1" in out
    page = Path("search/report.html").read_text(encoding="utf-8")
    assert f'<th scope="row">trial-{table["best"]}</th><td class="text">complete, the best</td>' in page
    assert page.count('<td class="text">pruned</td>') == expected.count("PRUNED")
    assert main(["sweep", file, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-3]


def test_a_killed_search_goes_on_as_if_it_had_not_been(ask, monkeypatch, capsys):
    """Killed behind the first step of the second trial: it goes on, and all values are as if not."""

    class Killed(BaseException):
        pass

    def dies(self, args, state, control, **kwargs):
        if self.number == 1 and state.global_step == 1:
            raise Killed

    whole, cut = load_search(ask("whole")), load_search(ask("cut", extra={"set": {"save_steps": 1}}))
    assert run_search(whole, in_process=True) == 0
    with monkeypatch.context() as patched:
        patched.setattr(trials.Reports, "on_step_end", dies, raising=False)
        with pytest.raises(Killed):
            run_search(cut, in_process=True)
    assert states(cut) == [(0, "COMPLETE"), (1, "RUNNING")]
    assert run_search(cut, in_process=True) == 0
    assert states(cut) == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]
    assert [one.value for one in Study(cut).trials()] == [one.value for one in Study(whole).trials()]
    assert Study(cut).trials()[1].user_attrs["deaths"] == 1


def test_a_metric_that_is_never_logged_ends_the_search(ask, capsys):
    assert main(["sweep", ask(metric="eval_los", prune=True), "--in-process"]) == 2
    error = capsys.readouterr().err
    assert "search.metric: 'eval_los' is never logged; logged are eval_" in error
    assert states(load_search(ask(metric="eval_los", prune=True))) == [(0, "FAIL")]


def test_failed_trials_count_and_three_of_nothing_else_are_enough(ask, capsys):
    file = ask(trials=9, extra={"set": {"data.train": "nothing.jsonl"}})
    assert main(["sweep", file, "--in-process"]) == 1
    assert "the first 3 trials failed, all of them: no more are begun" in capsys.readouterr().out
    table = json.loads(Path("search/trials.json").read_text())
    assert [one["state"] for one in table["trials"]] == ["fail"] * 3
    assert all("nothing.jsonl" in one["note"] for one in table["trials"])
    assert "None came to its end." in Path("search/report.html").read_text(encoding="utf-8")


# ---- Slurm -------------------------------------------------------------------------------------------------------


def test_jobs_of_an_array_are_workers_that_start_a_step_for_each_trial(ask, capsys):
    template = ROOT / "launch" / "slurm_one_node.sbatch"
    assert main(["sweep", ask(), "--slurm", str(template), "--workers", "3", "--sbatch=--time=9"]) == 0
    assert capsys.readouterr().out == "sbatch --array=0-2 --time=9 search/workers.sbatch\n"
    environment = {**os.environ, "SLURM_JOB_ID": "7", "VENV": "/v", "SLURM_CPUS_PER_TASK": "2"}
    shown = subprocess.run(
        ["bash", "search/workers.sbatch", "--dry-run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout.splitlines()[1])
    log = Path("search/logs/search-7-restart-0.log").resolve()
    assert words[3:9] == [str(log), "/v/bin/python", "-m", "alignlab", "sweep", str(Path("search.yaml").resolve())]
    launcher = shlex.split(words[words.index("--launcher") + 1])
    assert launcher[:4] == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=2", "bash"]
    assert launcher[-2:] == ["/v/bin/python", "-m"]
    assert main(["sweep", "search.yaml", "--slurm", str(template), "--workers", "0"]) == 2
    assert "--workers: expected at least 1, found 0" in capsys.readouterr().err
