"""A loop as a chain of Slurm jobs, each waiting for the one before; sampling and judging as arrays."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from alignlab.checkpoints import write_whole

from .config import RoundsConfig
from .driver import CONFIG
from .stages import Stage, all_stages

ALONE = ("pair", "reference")  # the work of one process
SHARED = ("sample", "judge")  # the work of any number of jobs

_CHAIN = """#!/usr/bin/env bash
# The stages of {config} as Slurm jobs; each starts when the one before has ended well (afterok).
# A job that is preempted saves and requeues itself; one that fails takes those behind it from the queue.
#   bash {script}
set -euo pipefail
cd {here} # where its paths are read from
export CHECKOUT="${{CHECKOUT:-{checkout}}}" TASK=rounds
submit() {{ # stage, array or "", then options of sbatch
  local stage=$1 array=$2 job
  shift 2
  local name=${{stage//\\//-}} # without a slash: the templates name their logs by the job
  job=$(STAGE="$stage" RUN_DIR={folder}/jobs/"$name" sbatch --parsable --job-name="rounds-$name" \\
    ${{array:+--array="$array"}} ${{before:+"--dependency=afterok:$before" --kill-on-invalid-dep=yes}} "$@" \\
    {template} {config})
  before=${{job%%;*}}
  echo "$stage $before"
}}
before=""
{jobs}
"""


def write_chain(loop: RoundsConfig, template: str | Path, options: Sequence[str] = (), array: int = 1) -> Path:
    """Writes ``chain.sh``, which submits what is missing of a loop; returns it.

    Args:
        template: a job script of ``launch/`` that runs ``TASK=rounds``. options: further words for sbatch.
        array: jobs that share sampling, and those that share judging.

    Raises:
        FileNotFoundError: no such template.
        ValueError: nothing is missing, or the template is no job script.
    """
    template = Path(template)
    if not template.is_file():
        raise FileNotFoundError(f"--slurm: no template {template}; launch/ of the checkout has some")
    if "#SBATCH" not in template.read_text(encoding="utf-8"):
        raise ValueError(f"--slurm: {template} has no #SBATCH lines; is it a job script?")
    missing = [stage for stage in all_stages(loop) if not stage.is_done()]
    if not missing:
        raise ValueError(f"{loop.folder}: every stage is done")
    loop.folder.mkdir(parents=True, exist_ok=True)
    write_whole(loop.folder / CONFIG, loop.to_yaml())  # which a job may be reading now
    script = loop.folder / "chain.sh"
    text = _CHAIN.format(
        config=shlex.quote(str((loop.folder / CONFIG).resolve())),
        script=shlex.quote(str(script.resolve())),
        here=shlex.quote(os.getcwd()),
        checkout=template.resolve().parent.parent,
        folder=shlex.quote(str(loop.folder.resolve())),
        template=shlex.quote(str(template.resolve())),
        jobs="\n".join(_job(stage, options, array) for stage in missing),
    )
    script.write_text(text, encoding="utf-8")
    return script


def _job(stage: Stage, options: Sequence[str], array: int) -> str:
    shared = f"0-{array - 1}" if array > 1 and stage.name in SHARED else ""
    alone = ["--nodes=1", "--ntasks=1"] if stage.name in ALONE else []
    return shlex.join(["submit", str(stage), shared, *options, *alone])
