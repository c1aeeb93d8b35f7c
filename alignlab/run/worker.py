"""A worker of a search: takes trials of the study and runs them until none are left; several may share a study."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly, remove_asides, write_whole

from .launcher import FAILED, Say, run_process, write_job
from .search import Search
from .study import JOURNAL, Study, Taken
from .trial import run_trial

logger = logging.getLogger(__name__)
TRIALS = "trials.json"
MOST_FAILURES = 3  # in a row with nothing else before: further trials would fail as well


def run_search(search: Search, in_process: bool = False, say: Say = print) -> int:
    """Runs trials until as many as were asked for are there, then writes the report; returns the exit status.

    A trial whose worker was killed goes on from its checkpoint. One that fails counts, with its reason. A signal ends
    the running trial with a checkpoint, and this worker with it. Other workers, here or on other machines that share
    the folder, take other trials of the same study.

    Args:
        in_process: train all trials in this process, which saves their imports; otherwise each is a process of its
            own, with its output in ``train.log`` in its folder.

    Raises:
        ValueError: the folder holds the study of another search, or no evaluation logs its metric.
    """
    study, failures, any_fine = Study(search), 0, False
    while (any_fine or failures < MOST_FAILURES) and (taken := study.take()) is not None:
        say(f"trial {taken.number} of {search.options.trials}  {_words(search.space.values(taken.drawn))}")
        try:
            told, fine = _run(search, study, taken, in_process)
        finally:
            taken.held.release()
        say(f"     {told}")
        if fine is None:
            return STOPPED_EARLY
        any_fine, failures = any_fine or fine, failures + (not fine)
    if failures >= MOST_FAILURES and not any_fine:
        say(f"the first {failures} trials failed, all of them: no more are begun")
    return _end(study, say)


def _run(search: Search, study: Study, taken: Taken, in_process: bool) -> tuple[str, bool | None]:
    """Runs a trial and tells the study what came of it; returns that in words, and whether it went well.

    None in place of that: it was told to stop, and is to go on.
    """
    number = taken.number
    try:
        run = search.run(number, taken.drawn)
    except ValueError as error:  # what was drawn does not go together
        return study.fail(number, str(error)), False
    search.config_file(number).parent.mkdir(exist_ok=True)
    remove_asides(search.config_file(number))  # this worker's alone, as the trial is
    write_whole(search.config_file(number), run.config.to_yaml())
    status, reason = _in_process(search, number) if in_process else _own_process(search, taken, run.folder)
    if status == STOPPED_EARLY:
        study.stopped(number)
        return f"told to stop in trial {number}; the same command goes on", None
    told = study.settle(number, run)
    return (told, True) if told else (study.fail(number, reason), False)


def _own_process(search: Search, taken: Taken, folder: Path) -> tuple[int, str]:
    launcher = shlex.split(search.launcher) or [sys.executable, "-m"]
    command = [*launcher, "alignlab", "sweep", str(search.file), "--trial", str(taken.number)]
    status = run_process(command, folder / "train.log", taken.held)
    return status, f"status {status}: {folder / 'train.log'}"


def _in_process(search: Search, number: int) -> tuple[int, str]:
    try:
        run_trial(search, number)
    except StoppedEarly:
        return STOPPED_EARLY, ""
    except Exception as error:
        logger.debug("trial %d failed", number, exc_info=True)
        return FAILED, f"{type(error).__name__}: {error}"
    return 0, "it ended without metrics.json"


def _end(study: Study, say: Say) -> int:
    """Writes ``trials.json`` and the report, which the last worker to end writes in full; returns the exit status."""
    from alignlab.report import PAGE, compare_runs

    folder = study.search.folder
    with study.lock:
        table = study.table()
        write_whole(folder / TRIALS, json.dumps(table, indent=2) + "\n")
        done = [f"trial-{one['trial']}" for one in table["trials"] if one["state"] == "complete"]
        page = compare_runs([folder / name for name in done], folder / PAGE, plots=True, trials=table)
    say(f"{counted(table)}\n{page}")
    best = next((one for one in table["trials"] if one["trial"] == table["best"]), None)
    if best is None:
        return FAILED
    say(f"best: trial {best['trial']}, {table['metric']}: {best['value']:.6g}, {_words(best['drawn'])}")
    return 0


def counted(table: Mapping[str, Any]) -> str:
    """Returns how many trials are in which state: ``40 trials: 30 complete, 8 pruned, 2 to come``."""
    states = [one["state"] for one in table["trials"]]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    missing = table["asked"] - len(states)
    parts += [f"{missing} to come"] * (missing > 0)
    return f"{max(table['asked'], len(states))} trials: {', '.join(parts)}"


def trials_of(search: Search) -> dict[str, Any]:
    """Returns the trials of a search as ``Study.table`` does, without beginning one that has not begun."""
    if (search.folder / JOURNAL).is_file():
        return Study(search).table()
    options = search.options
    kept = {"metric": options.metric, "direction": options.direction, "asked": options.trials}
    return {**kept, "best": None, "trials": [], "importance": {}}


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}" for key, value in values.items()
    )


# ---- Slurm -------------------------------------------------------------------------------------------------------

_ARRAY = """#!/usr/bin/env bash
# Workers of the search {file}: each takes trials of one study until none are left.
# Slurm's options are those of {template}, which does the work: it saves, requeues itself and resumes.
{options}
set -euo pipefail
export TASK=search RUN_DIR={folder} CHECKOUT="${{CHECKOUT:-{checkout}}}"
exec bash {template} "$@" {config}
"""


def write_workers(
    search: Search, template: str | Path, workers: int, options: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Writes ``workers.sbatch``, of which each job is a worker; returns it and the command that submits them.

    Args:
        template: a job script that knows ``TASK=search``: ``launch/slurm_one_node.sbatch``, for trials of one node.
        options: further words for sbatch, which count before those in the template.

    Raises:
        FileNotFoundError: no such template.
        ValueError: it has no ``#SBATCH`` lines, or no worker is asked for.
    """
    if workers < 1:
        raise ValueError(f"--workers: expected at least 1, found {workers}")
    words = {"file": search.file, "config": shlex.quote(str(search.file.resolve()))}
    script = write_job(search.folder / "workers.sbatch", _ARRAY, template, words)
    return script, ["sbatch", f"--array=0-{workers - 1}", *options, str(script)]
