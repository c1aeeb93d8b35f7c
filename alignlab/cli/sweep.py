"""``alignlab sweep``: a grid of runs, or a search by Optuna: runs what is missing, then reports."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from typing import Any

from .console import start_logging
from .launched import leave
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "losses x hyper-parameters x seeds, or a search: run what is missing, then report"
    examples = ("alignlab sweep SWEEP.yaml --dry-run", "alignlab sweep SWEEP.yaml --in-process")
    array = "alignlab sweep SWEEP.yaml --slurm launch/slurm_one_node.sbatch --submit"
    parser = add_command(commands, "sweep", run, text, *examples, array)
    add_argument = parser.add_argument
    add_argument("file", metavar="SWEEP.yaml", help="a file, or the name of a shipped sweep (sweep_example.yaml)")
    add_argument("--dry-run", action="store_true", help="check every run, say which are done, and run nothing")
    add_argument("--in-process", action="store_true", help="train all in this process: no imports for each run")
    add_argument("--slurm", metavar="TEMPLATE", help="write a Slurm array from a job script of launch/ instead")
    options = "with --slurm: --sbatch='--time=60 --gpus-per-node=1'"
    add_argument("--sbatch", metavar="OPTIONS", default="", help=options)
    add_argument("--submit", action="store_true", help="with --slurm: hand it to sbatch")
    add_argument("--workers", type=int, metavar="N", help="of a search, with --slurm: how many share it (default: 1)")
    add_argument("--launcher", help="of a search: what starts a module of Python, in place of the file's launcher")
    add_argument("--trial", type=int, metavar="N", help="of a search: only run this trial, which a worker has taken")


def run(arguments: argparse.Namespace) -> int:
    """Runs a sweep, says what there is to run, or writes an array of jobs; returns the exit status."""
    from alignlab.run import is_search, load_sweep, run_sweep, submit, write_array

    if (arguments.submit or arguments.sbatch) and arguments.slurm is None:
        raise ValueError("--submit, --sbatch: of what? --slurm launch/slurm_one_node.sbatch writes an array")
    if is_search(arguments.file):
        return _search(arguments)
    for name in ("workers", "launcher", "trial"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name}: {arguments.file} has no search")
    start_logging(logging.WARNING)
    sweep = load_sweep(arguments.file)
    if arguments.dry_run:
        states = [run.state for run in sweep.runs]
        for run in sweep.runs:
            print(f"{run.state:8} {run.folder}")
        print(f"{len(states)} runs: {', '.join(f'{states.count(one)} {one}' for one in dict.fromkeys(states))}")
        return 0
    if arguments.slurm is None:
        return run_sweep(sweep, arguments.in_process)
    _, command = write_array(sweep, arguments.slurm, shlex.split(arguments.sbatch))
    print(shlex.join(command), flush=True)
    return submit(command) if arguments.submit else 0


def _search(arguments: argparse.Namespace) -> int:
    from alignlab.run import counted, load_search, run_search, submit, trials_of, write_workers

    if arguments.trial is not None:
        return _trial(arguments)
    if arguments.workers is not None and arguments.slurm is None:
        raise ValueError("--workers: of --slurm; here, start the same command several times: they share the study")
    start_logging(logging.WARNING)
    search = load_search(arguments.file, arguments.launcher)
    if arguments.dry_run:
        table = trials_of(search)
        for one in table["trials"]:
            value = "" if one["value"] is None else f"  {table['metric']}: {one['value']:.6g}"
            print(f"{one['state']:8} {search.folder}/trial-{one['trial']}{value}")
        print(counted(table))
        return 0
    if arguments.slurm is None:
        return run_search(search, arguments.in_process)
    workers = 1 if arguments.workers is None else arguments.workers
    _, command = write_workers(search, arguments.slurm, workers, shlex.split(arguments.sbatch))
    print(shlex.join(command), flush=True)
    return submit(command) if arguments.submit else 0


def _trial(arguments: argparse.Namespace) -> int:
    """Runs one trial, as its worker asked, on every rank; returns the exit status."""
    from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly
    from alignlab.run import load_search, run_trial

    start_logging()
    search = load_search(arguments.file, check_runs=False)
    try:
        given_up = run_trial(search, arguments.trial)
    except StoppedEarly as stopped:
        print(f"alignlab: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and "LOCAL_RANK" in os.environ:
            os._exit(STOPPED_EARLY)  # other ranks do not know of it, so none may be waited for
        return STOPPED_EARLY
    if given_up and os.environ.get("RANK", "0") == "0":
        print(given_up, flush=True)
    return leave(0)
