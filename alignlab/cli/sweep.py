"""``alignlab sweep``: losses x hyper-parameters x seeds: runs what is missing, then reports."""

from __future__ import annotations

import argparse
import logging
import shlex
from typing import Any

from .console import start_logging
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "losses x hyper-parameters x seeds: run what is missing, then report"
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


def run(arguments: argparse.Namespace) -> int:
    """Runs a sweep, says what there is to run, or writes an array of jobs; returns the exit status."""
    from alignlab.run import load_sweep, run_sweep, submit, write_array

    if (arguments.submit or arguments.sbatch) and arguments.slurm is None:
        raise ValueError("--submit, --sbatch: of what? --slurm launch/slurm_one_node.sbatch writes an array")
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
