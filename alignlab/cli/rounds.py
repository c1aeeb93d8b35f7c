"""``alignlab rounds``: sample, judge, pair and train in rounds, from wherever the loop was left."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from .console import show, start_logging
from .launched import leave
from .parsers import add_reader, with_examples


def add_to(commands: Any) -> None:
    """Names the command; its options are below, and the keys of the loop."""
    text = "sample, judge, pair and train in rounds: alignlab rounds ROUNDS.yaml [--KEY VALUE ...]"
    add_reader(commands, "rounds", text)


def main(words: Sequence[str]) -> int:
    """Runs a loop, one stage of it, or writes its Slurm jobs; returns the exit status."""
    told, rest = _parser().parse_known_args(words)
    from alignlab.config import split_command_line

    extra, overrides = split_command_line(rest)
    if extra is not None:
        raise ValueError(f"one loop at a time: found {told.file!r} and {extra!r}; keys start with --")
    if (told.submit or told.sbatch) and told.slurm is None:
        raise ValueError("--submit, --sbatch: of what? --slurm launch/slurm_one_node.sbatch writes a chain of jobs")
    start_logging()
    from alignlab.rounds import Rounds, load_rounds, write_chain

    rounds = Rounds(load_rounds(told.file, overrides))
    if told.stage is not None:
        return leave(_guarded(lambda: rounds.run_stage(told.stage)))
    if told.slurm is not None or told.dry_run:
        rounds.check()
    if told.slurm is not None:
        from alignlab.run import submit

        script = write_chain(rounds.loop, told.slurm, shlex.split(told.sbatch), told.array)
        print(f"bash {shlex.quote(str(script))}", flush=True)
        return submit(["bash", str(script)]) if told.submit else 0
    if told.dry_run:
        for stage, state in rounds.states():
            print(f"{state:8} {stage.folder}")
        return 0
    status = _guarded(rounds.run)
    if status == 0:
        _show(rounds)
    return status


def _guarded(work: Any) -> int:
    """Returns the exit status of work that may be told to stop."""
    from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly

    try:
        work()
    except StoppedEarly as stopped:
        print(f"alignlab: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and "LOCAL_RANK" in os.environ:
            os._exit(STOPPED_EARLY)
        return STOPPED_EARLY
    return 0


def _show(rounds: Any) -> None:
    from alignlab.rounds import best_line, round_rows

    rows = round_rows(rounds.loop)
    show(rounds_table(rows), best_line(rows).strip(), f"report: {rounds.loop.folder / 'rounds.md'}")


def rounds_table(rows: list[dict[str, Any]]) -> Any:
    """Returns the figures of rounds as a table for the terminal."""
    from rich.table import Table

    from alignlab.rounds import table

    header, *lines = table(rows)
    shown = Table(*header, title="rounds", title_justify="left")
    for line in lines:
        shown.add_row(*line)
    return shown


def _parser() -> argparse.ArgumentParser:
    text = """Sample, judge, pair and train in rounds, as a YAML file says. The same command goes on from wherever the
loop was left. Every key of the file can stand on the command line, where dots reach into blocks: --rounds 3,
--sample.samples 4, --train.learning_rate 1e-6."""
    dry = "alignlab rounds iterative_dpo.yaml --dry-run"
    chain = "alignlab rounds iterative_dpo.yaml --slurm launch/slurm_one_node.sbatch --array 8 --submit"
    shown = with_examples("alignlab rounds iterative_dpo.yaml --start path/to/sft-model", dry, chain)
    parser = argparse.ArgumentParser(prog="alignlab rounds", description=text, allow_abbrev=False, **shown)
    add = parser.add_argument
    add(
        "file",
        metavar="ROUNDS.yaml",
        help="a file, or the name of a shipped one (iterative_dpo, rlhflow, spin, rejection_sft)",
    )
    add("--dry-run", action="store_true", help="check the loop, say which stages are done, and run nothing")
    add("--stage", metavar="R/NAME", help="run one stage alone, 2/train say: what launchers and jobs do")
    add("--slurm", metavar="TEMPLATE", help="write a chain of Slurm jobs from a job script of launch/ instead")
    add("--sbatch", metavar="OPTIONS", default="", help="with --slurm: further options, '--time=60 --partition=gpu'")
    add("--array", type=int, default=1, metavar="N", help="with --slurm: jobs that share sampling (%(default)s)")
    add("--submit", action="store_true", help="with --slurm: hand the jobs to sbatch")
    return parser
