"""Runs a sweep: one process after another on this machine, in this process, or as an array of Slurm jobs."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from filelock import FileLock

from alignlab.checkpoints import SIGNALS, STOPPED_EARLY, StoppedEarly

from .sweep import Sweep, SweepRun

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
FAILED = 1


def run_sweep(sweep: Sweep, in_process: bool = False, say: Say = print) -> int:
    """Runs what is missing, then writes the report of all runs; returns the exit status.

    A run that has a checkpoint goes on from it. One that fails is named at the end, and the others are run all the
    same. A signal ends the running run with a checkpoint, and the sweep with it.

    Args:
        in_process: train all runs in this process, which saves their imports; otherwise each is an `alignlab train`
            of its own, with its output in ``train.log`` in its folder.
    """
    sweep.write_configs()
    failed: list[str] = []
    missing = [run for run in sweep.runs if not run.is_done]
    for place, run in enumerate(missing, 1):
        say(f"{place}/{len(missing)}  {run.name}" + (", from its checkpoint" if run.state == "begun" else ""))
        status = _in_process(run, sweep) if in_process else _own_process(run, sweep)
        if status == STOPPED_EARLY:
            say(f"told to stop in {run.name}; the same command goes on")
            return STOPPED_EARLY
        if status != 0 or not run.is_done:
            failed.append(run.name)
            say(f"     failed with status {status}" + ("" if in_process else f": {run.folder / 'train.log'}"))
    _report(sweep, say)
    if failed:
        say(f"{len(failed)} of {len(sweep.runs)} runs failed: {', '.join(failed)}")
        return FAILED
    return 0


def train_command(sweep: Sweep, run: SweepRun) -> list[str]:
    """Returns the words that train a run, on from its checkpoint if there is one."""
    launcher = shlex.split(sweep.launcher) or [sys.executable, "-m"]
    return [*launcher, "alignlab", "train", str(sweep.config_file(run)), "--resume_from_checkpoint", "auto"]


def _own_process(run: SweepRun, sweep: Sweep) -> int:
    return run_process(train_command(sweep, run), run.folder / "train.log")


def run_process(command: Sequence[str], log: Path, held: FileLock | None = None) -> int:
    """Runs a command with its output behind that in a log, and hands signals on; returns the exit status.

    One that was told to stop and did not end well was stopped early, whatever its launcher makes of that.

    Args:
        held: a lock that the command holds, too, so that it stays taken where this process is killed.
    """
    shared = [] if held is None else [held._context.lock_file_fd]
    log.parent.mkdir(parents=True, exist_ok=True)
    told = False
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, pass_fds=[one for one in shared if one is not None]
        )

        def forward(number: int, frame: FrameType | None) -> None:
            nonlocal told
            told = True
            child.send_signal(number)

        before = {one: signal.signal(one, forward) for one in SIGNALS}
        try:
            status = child.wait()
            return STOPPED_EARLY if told and status != 0 else status
        except BaseException:  # a keyboard interrupt, say: nothing is left running behind
            child.terminate()
            child.wait()
            raise
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _in_process(run: SweepRun, sweep: Sweep) -> int:
    from alignlab.config import load_config

    from .single import train

    try:
        train(load_config(sweep.config_file(run), ["--resume_from_checkpoint", "auto"]))
    except StoppedEarly:
        return STOPPED_EARLY
    except Exception:
        logger.exception("%s failed", run.name)
        return FAILED
    return 0


def _report(sweep: Sweep, say: Say) -> None:
    """Writes ``report.html`` over the runs that are done."""
    from alignlab.report import PAGE, compare_runs

    done = [run.folder for run in sweep.runs if run.is_done]
    if len(done) > 1:
        say(f"{compare_runs(done, sweep.folder / PAGE, plots=True)}: {len(done)} runs")


# ---- Slurm -------------------------------------------------------------------------------------------------------

_ARRAY = """#!/usr/bin/env bash
# One job of the array for each run of {file}; job N trains the Nth config below.
# Slurm's options are those of {template}, which does the work: it saves, requeues itself and resumes.
{options}
set -euo pipefail
configs=(
{configs}
)
config="${{configs[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
RUN_DIR={folder}/"$(basename "$config" .yaml)"
export RUN_DIR CHECKOUT="${{CHECKOUT:-{checkout}}}"
exec bash {template} "$@" "$config"
"""


def write_array(sweep: Sweep, template: str | Path, options: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """Writes ``array.sbatch``, which trains one run a job; returns it and the command that submits what is missing.

    Args:
        template: a job script that takes a config and trains into ``RUN_DIR``: ``launch/slurm_one_node.sbatch``.
        options: further words for sbatch, which count before those in the template.

    Raises:
        FileNotFoundError: no such template.
        ValueError: it has no ``#SBATCH`` lines, or nothing is missing.
    """
    missing = [index for index, run in enumerate(sweep.runs) if not run.is_done]
    if not missing:
        raise ValueError(
            f"{sweep.file}: all {len(sweep.runs)} runs are done; alignlab report {sweep.folder} shows them"
        )
    configs = "\n".join(f"  {shlex.quote(str(sweep.config_file(run).resolve()))}" for run in sweep.runs)
    script = write_job(sweep.folder / "array.sbatch", _ARRAY, template, {"file": sweep.file, "configs": configs})
    sweep.write_configs()
    return script, ["sbatch", f"--array={_ranges(missing)}", *options, str(script)]


def write_job(script: Path, text: str, template: str | Path, words: Mapping[str, object]) -> Path:
    """Writes a job script with the ``#SBATCH`` lines of a template, and what ``text`` has of words; returns it.

    Raises:
        FileNotFoundError: no such template.
        ValueError: it has no ``#SBATCH`` lines.
    """
    template = Path(template)
    if not template.is_file():
        raise FileNotFoundError(f"--slurm: no template {template}; launch/ of the checkout has some")
    lines = [line for line in template.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
    if not lines:
        raise ValueError(f"--slurm: {template} has no #SBATCH lines; is it a job script?")
    script.parent.mkdir(parents=True, exist_ok=True)
    filled = text.format(
        template=shlex.quote(str(template.resolve())),
        options="\n".join(line for line in lines if "--array" not in line),
        folder=shlex.quote(str(script.parent.resolve())),
        checkout=template.resolve().parent.parent,
        **words,
    )
    script.write_text(filled, encoding="utf-8")
    return script


def submit(command: Sequence[str], say: Say = print) -> int:
    """Hands an array to Slurm; returns the exit status of sbatch.

    Raises:
        FileNotFoundError: there is no sbatch here.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"--submit: no {command[0]} on PATH; on a machine with Slurm: {shlex.join(command)}")
    done = subprocess.run(command, capture_output=True, text=True)
    say((done.stdout + done.stderr).strip())
    return done.returncode


def _ranges(indices: Sequence[int]) -> str:
    """Returns 0,1,2,5 as Slurm writes them: ``0-2,5``."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][-1] == index - 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in parts)
