"""Fills a Slurm template in and submits it: ``python launch/submit.py one-node CONFIG.yaml [--gpus 8 --key value]``."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent
TEMPLATES = {
    "one-node": "slurm_one_node.sbatch",
    "many-nodes": "slurm_many_nodes.sbatch",
    "sweep": "slurm_sweep.sbatch",
    "chain": "slurm_chain.sh",
}
USER_ERROR = 2


@dataclass(frozen=True)
class Submission:
    """What is run in the shell: a command, and the variables of the template that it fills in."""

    command: list[str]
    variables: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([f"{name}={shlex.quote(value)}" for name, value in self.variables.items()] + [self._words])

    @property
    def _words(self) -> str:
        return shlex.join(self.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the request, then submits it, or with ``--dry-run`` prints what would be submitted and run."""
    options, overrides = _parser().parse_known_args(argv)
    try:
        check(options, overrides)
        submission = fill_in(options, overrides)
    except (ValueError, OSError) as error:
        print(f"submit.py: error: {error}", file=sys.stderr)
        return USER_ERROR
    environment = {**os.environ, **submission.variables}
    if options.dry_run:
        print(submission, flush=True)
        template = str(LAUNCH / TEMPLATES[options.template])
        return subprocess.run(["bash", template, "--dry-run", options.config, *overrides], env=environment).returncode
    return subprocess.run(submission.command, env=environment).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/submit.py", description=__doc__, allow_abbrev=False, epilog="Other --key value: of the config."
    )
    add = parser.add_argument
    add("template", choices=sorted(TEMPLATES), help="what to submit")
    add("config", help="a YAML file, or the name of a shipped config")
    add("--gpus", type=int, default=8, help="on each node, one task each; 0: on CPUs (default: 8)")
    add("--nodes", type=int, help="of many-nodes (default: 2)")
    add("--tasks", type=int, help="on each node; by default one per GPU")
    add("--cpus", type=int, default=8, help="for each task (default: 8)")
    add("--time", default="24:00:00", help="as Slurm takes it: minutes, HH:MM:SS, D-HH, D-HH:MM:SS (default: 24:00:00)")
    add("--early", type=int, default=300, help="seconds before the end to save and requeue (default: 300)")
    add("--max-restarts", type=int, default=20, help="how often a job may requeue itself (default: 20)")
    add("--partition", help="by default the cluster's own")
    add("--account", help="whom Slurm charges")
    add("--venv", help="a virtual environment that all nodes see; by default the python on PATH")
    add("--container", help="image.sif for apptainer, pyxis:IMAGE for pyxis")
    add("--run-dir", help="where the run goes; by default under runs/, by the job's number")
    add("--losses", default="dpo ipo", help="of sweep")
    add("--betas", default="0.05 0.1", help="of sweep")
    add("--eval-data", help="of chain: pairs to evaluate the trained model on")
    add("--dry-run", action="store_true", help="print what would be submitted and what would run; submit nothing")
    return parser


def check(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raises a ValueError that says what was found and what is allowed, before anything waits in a queue."""
    _check_numbers(options)
    _check_places(options)
    _check_config(options, overrides)
    _check_cluster(options)


def _check_numbers(options: argparse.Namespace) -> None:
    least = {"gpus": 0, "nodes": 1, "tasks": 1, "cpus": 1, "early": 1, "max_restarts": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {smallest}, found {value}")
    if options.nodes is not None and options.template != "many-nodes":
        raise ValueError(f"--nodes: {options.template} runs on one node; for more: many-nodes")
    if options.eval_data is not None and options.template != "chain":
        raise ValueError(f"--eval-data: {options.template} evaluates as its config says; it is an option of chain")
    if options.gpus and options.tasks not in (None, options.gpus):
        raise ValueError(f"--tasks: expected one per GPU, {options.gpus}, found {options.tasks}")
    limit = seconds(options.time)
    if limit <= options.early:
        raise ValueError(f"--early: expected less than the time limit, {limit} s, found {options.early} s")


def seconds(text: str) -> int:
    """Returns a time limit in seconds: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if found is None:
        raise ValueError(f"--time: expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, found {text!r}")
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    units = (3600, 60, 1) if days is not None or len(parts) == 3 else (60, 1)
    result = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
    if result == 0:
        raise ValueError(f"--time: expected more than no time, found {text!r}")
    return result


def _check_places(options: argparse.Namespace) -> None:
    if options.venv is not None and options.container is None:
        python = Path(options.venv) / "bin" / "python"
        if not os.access(python, os.X_OK):
            raise ValueError(f"--venv: expected a virtual environment, but there is no {python} to run")
    image = options.container
    if image is not None and not image.startswith("pyxis:") and not Path(image).exists():
        raise ValueError(f"--container: no image {image}; allowed: a file for apptainer, or pyxis:IMAGE")
    if options.eval_data is not None and not Path(options.eval_data).exists():
        raise ValueError(f"--eval-data: no file {options.eval_data}")
    if options.run_dir is not None and re.search(r"\s", options.run_dir):
        raise ValueError(f"--run-dir: expected a path without blanks, found {options.run_dir!r}")


def _check_config(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Loads the config as each job will: no job should wait a day in the queue to die of a misspelt key."""
    from alignlab.config import find_config, load_config

    for key in ("output_dir", "resume_from_checkpoint"):
        if any(word.split("=")[0] == f"--{key}" for word in overrides):
            raise ValueError(f"--{key}: the template sets it; for another folder write --run-dir")
    for words in _grid(options) if options.template == "sweep" else [[]]:
        config = load_config(options.config, [*overrides, *words])
        deepspeed = config.training.get("deepspeed")
        if isinstance(deepspeed, str):
            find_config(deepspeed)


def _grid(options: argparse.Namespace) -> list[list[str]]:
    """Returns the overrides of every job of a sweep, betas fastest."""
    losses, betas = options.losses.split(), options.betas.split()
    if not losses or not betas:
        raise ValueError(f"--losses, --betas: expected at least one of each, found {losses} and {betas}")
    return [["--loss.name", loss, "--loss.beta", beta] for loss in losses for beta in betas]


def _check_cluster(options: argparse.Namespace) -> None:
    """Compares the request with the partition, where Slurm is there to ask."""
    if shutil.which("sinfo") is None:
        return
    asked = subprocess.run(["sinfo", "--noheader", "--format=%R|%D|%G"], capture_output=True, text=True)
    if asked.returncode != 0:
        return  # sbatch will say why Slurm does not answer
    rows = [line.split("|") for line in asked.stdout.splitlines()]
    names = sorted({name for name, _, _ in rows})
    if options.partition is None:
        return  # which one is the default, and whether it may be used, is the cluster's to say
    mine = [(int(count), gpus_of(gres)) for name, count, gres in rows if name == options.partition]
    if not mine:
        raise ValueError(f"--partition: expected one of {', '.join(names)}, found {options.partition!r}")
    most = max(gpus for _, gpus in mine)
    if options.gpus > most:
        raise ValueError(f"--gpus: a node of {options.partition} has at most {most}, found {options.gpus}")
    fitting = sum(count for count, gpus in mine if gpus >= options.gpus)
    if (options.nodes or 1) > fitting:
        raise ValueError(f"--nodes: {options.partition} has {fitting} with {options.gpus} GPUs, found {options.nodes}")


def gpus_of(gres: str) -> int:
    """Returns the GPUs that sinfo's column of generic resources names: "gpu:h100:8(S:0-1),nvme:1" has 8."""
    return sum(int(count) for count in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres))


def fill_in(options: argparse.Namespace, overrides: Sequence[str]) -> Submission:
    """Returns the command and the template's variables for a checked request."""
    given = {"VENV": options.venv, "CONTAINER": options.container, "RUN_DIR": options.run_dir}
    if options.template == "sweep":
        given |= {"LOSSES": options.losses, "BETAS": options.betas, "SWEEP_DIR": given.pop("RUN_DIR")}
    variables = {name: value for name, value in given.items() if value is not None}
    variables |= {"CHECKOUT": str(LAUNCH.parent), "MAX_RESTARTS": str(options.max_restarts)}
    sbatch = ["sbatch", *_sbatch_options(options)]
    template = str(LAUNCH / TEMPLATES[options.template])
    if options.template == "chain":
        if options.eval_data is not None:
            variables["EVAL_DATA"] = options.eval_data
        return Submission(["bash", template, options.config, *overrides], {**variables, "SBATCH": " ".join(sbatch)})
    return Submission([*sbatch, template, options.config, *overrides], variables)


def _sbatch_options(options: argparse.Namespace) -> list[str]:
    words = {
        "nodes": options.nodes or (2 if options.template == "many-nodes" else 1),
        "gpus-per-node": options.gpus,
        "ntasks-per-node": options.tasks or max(options.gpus, 1),
        "cpus-per-task": options.cpus,
        "time": options.time,
        "signal": f"B:USR1@{options.early}",
        "partition": options.partition,
        "account": options.account,
    }
    if options.template == "sweep":
        words["array"] = f"0-{len(_grid(options)) - 1}"
    return [f"--{name}={value}" for name, value in words.items() if value is not None]


if __name__ == "__main__":
    raise SystemExit(main())
