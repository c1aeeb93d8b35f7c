"""The commands; each hands over to the room that does the work."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Everything heavy (torch, transformers) is imported by the command that needs it, so that help comes at once.

USER_ERROR = 2

TRAIN_USAGE = """usage: alignlab train CONFIG.yaml [--KEY VALUE ...]

CONFIG.yaml is a file, or the name of a shipped config. Every key below can stand in it and on the command line,
where dots reach into blocks: --loss.beta 0.2 --learning_rate 1e-6 --peft.r 16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; errors of the user are one line, without a traceback.

    ``ALIGNLAB_DEBUG=1`` lets the traceback through.
    """
    words = _without_local_rank(sys.argv[1:] if argv is None else argv)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # advice on inference, at every import
    try:
        if words[:1] == ["train"]:  # its options are the keys of the config, not argparse's
            return _leave(_train(words[1:]))
        if words[:1] == ["score"]:
            return _leave(_score(words[1:]))
        if words[:1] == ["demo"]:
            return _demo(words[1:])
        if words[:1] == ["eval"]:
            return _eval(words[1:])
        if words[:1] == ["plan"]:
            return _plan(words[1:])
        arguments = _parser().parse_args(words or ["--help"])
        return int(arguments.run(arguments))
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ALIGNLAB_DEBUG", "0") not in ("", "0"):
            raise
        print(f"alignlab: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("alignlab: interrupted", file=sys.stderr)
        return 130


def _without_local_rank(words: Sequence[str]) -> list[str]:
    """Takes out ``--local_rank=N``, which DeepSpeed's launcher puts first; the environment variable says the same."""
    kept = []
    for word in words:
        name, _, rank = word.partition("=")
        if name in ("--local_rank", "--local-rank") and rank.isdigit():
            os.environ.setdefault("LOCAL_RANK", rank)
        else:
            kept.append(word)
    return kept


def _leave(status: int) -> int:
    """Ends a process that a launcher started without tearing the interpreter down; otherwise returns ``status``.

    Gloo's threads can outlive the interpreter's finalisation and abort a run whose work is done (exit status -6).
    """
    import torch.distributed

    if "LOCAL_RANK" not in os.environ or not torch.distributed.is_initialized():
        return status
    torch.distributed.barrier()
    atexit._run_exitfuncs()  # os._exit skips them, and loggers finish their uploads there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alignlab", description="Train language models on preferences.")
    parser.add_argument("--version", action="version", version=f"alignlab {metadata.version('alignlab')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = "train as a config says: alignlab train CONFIG.yaml [--loss.beta 0.2 --learning_rate 1e-6 ...]"
    commands.add_parser("train", help=train, add_help=False)
    score = "fill the score cache for such a run, and stop: alignlab score CONFIG.yaml [--KEY VALUE ...]"
    commands.add_parser("score", help=score, add_help=False)
    plan = "memory on each GPU before it is spent: alignlab plan CONFIG.yaml --gpus 8 --gpu-memory 80 [--KEY VALUE ...]"
    commands.add_parser("plan", help=plan, add_help=False)

    losses = _command(commands, "losses", _losses, "list the losses, describe one, or check your own")
    losses.add_argument("words", nargs="*", metavar="[NAME | check FILE.py:Name]", help="a loss; or a loss of your own")

    data = commands.add_parser("data", help="look at data without a model").add_subparsers(required=True)
    check = _command(data, "check", _data_check, "every bad row by file and line; lengths, duplicates, groups")
    check.add_argument("files", nargs="+", metavar="FILE", help="jsonl(.gz), json, parquet, csv, arrow")
    check.add_argument("--tokenizer", help="folder or hub id: count lengths in its tokens; by default in bytes")

    cache = commands.add_parser("cache", help="look after the scores of frozen models").add_subparsers(required=True)
    info = _command(cache, "info", _cache_info, "list the models whose scores are kept")
    verify = _command(cache, "verify", _cache_verify, "read every shard and name the damaged ones")
    verify.add_argument("--repair", action="store_true", help="set them aside; their rows are scored again when needed")
    prune = _command(cache, "prune", _cache_prune, "delete scores, and what crashes left behind")
    prune.add_argument("fingerprints", nargs="*", metavar="FINGERPRINT", help="these; the first characters suffice")
    prune.add_argument("--older_than_days", type=float, help="those not used for longer")
    prune.add_argument("--max_gb", type=float, help="the least recently used, until the rest fits")
    prune.add_argument("--dry_run", action="store_true", help="delete nothing, say what would be deleted")
    for one in (info, verify, prune):
        one.add_argument("--dir", type=Path, help="the cache; by default where runs keep it")

    measure = "measure a model on held-out pairs and on sampled answers: alignlab eval MODEL --data FILE"
    commands.add_parser("eval", help=measure, add_help=False)

    report = _command(commands, "report", _report, "curves, samples and warnings of runs, as one HTML file")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of run folders")
    report.add_argument("--output", metavar="FILE.html", help="by default report.html in the run, or in this folder")
    report.add_argument("--plots", action="store_true", help="also the charts as PNG, in plots/ beside the file")

    sweep = _command(commands, "sweep", _sweep, "losses x hyper-parameters x seeds: run what is missing, then report")
    sweep.add_argument("file", metavar="SWEEP.yaml", help="a file, or the name of a shipped sweep (sweep_example.yaml)")
    sweep.add_argument("--dry-run", action="store_true", help="check every run, say which are done, and run nothing")
    sweep.add_argument("--in-process", action="store_true", help="train all in this process: no imports for each run")
    sweep.add_argument("--slurm", metavar="TEMPLATE", help="write a Slurm array from a job script of launch/ instead")
    sweep.add_argument(
        "--sbatch", metavar="OPTIONS", default="", help="with --slurm: --sbatch='--time=60 --gpus-per-node=1'"
    )
    sweep.add_argument("--submit", action="store_true", help="with --slurm: hand it to sbatch")

    demo = "a small model learns a preference, from nothing, in minutes"
    commands.add_parser("demo", help=demo, add_help=False)  # its options are its own, as those of train are
    return parser


def _command(parent: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _print(*objects: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    for one in objects:
        console.print(one, markup=False, highlight=False)


def _train(words: Sequence[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        return _train_help()
    config = _config("train", words)
    from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly
    from alignlab.run import train

    try:
        train(config)
    except StoppedEarly as stopped:
        print(f"alignlab: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and "LOCAL_RANK" in os.environ:
            os._exit(STOPPED_EARLY)  # other ranks do not know of it, so none may be waited for
        return STOPPED_EARLY
    return 0


def _score(words: Sequence[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print("usage: alignlab score CONFIG.yaml [--KEY VALUE ...]\n\nThe config and its keys are those of a training.")
        return 0
    config = _config("score", words)
    from alignlab.run import score

    for name, count in score(config).items():
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: " + (f"{count} completions scored here" if count else "every completion is scored"))
    return 0


def _config(command: str, words: Sequence[str]) -> Any:
    """Returns the config that the words name, overridden as they say, and turns on the log of the run."""
    from alignlab.config import load_config, split_command_line

    config, options = split_command_line(words)
    if config is None:
        raise ValueError(f"which config? alignlab {command} CONFIG.yaml [--KEY VALUE ...]")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("alignlab").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    return load_config(config, [f"--{key}={text}" for key, text in options])


def _train_help() -> int:
    from alignlab.config import schema

    from .tables import keys_table

    print(TRAIN_USAGE)
    for title, keys in schema().groups.items():
        _print(keys_table(title, keys), "")
    return 0


def _losses(arguments: argparse.Namespace) -> int:
    from alignlab.losses import describe, names

    from .tables import losses_table

    words = arguments.words
    if words[:1] == ["check"]:
        if len(words) != 2:
            raise ValueError("which loss? alignlab losses check FILE.py:Name")
        return _losses_check(words[1])
    _print(losses_table(map(describe, words or names()), details=bool(words)))
    return 0


def _losses_check(spec: str) -> int:
    from alignlab.losses import CHECKS, build, check

    findings = check(build(spec))
    for finding in findings:
        print(finding)
    verdict = f"{len(findings)} breaches of the contract" if findings else "keeps the contract"
    print(f"{spec}: {verdict} ({len(CHECKS)} checks)")
    return 1 if findings else 0


def _data_check(arguments: argparse.Namespace) -> int:
    from alignlab.data import check, render

    tokenizer = None
    if arguments.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    found = check(arguments.files, tokenizer)
    _print(render(found))
    return 1 if found.report.rows_rejected else 0


def _cache_info(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_info

    from .tables import cache_table

    _print(cache_table(cache_info(_cache(arguments)), str(_cache(arguments))))
    return 0


def _cache_verify(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_verify

    damages = cache_verify(_cache(arguments), arguments.repair)
    for damage in damages:
        print(f"{damage.path}: {damage.reason}")
    print(
        f"{_cache(arguments)}: {len(damages)} damaged shards" + (", set aside" if damages and arguments.repair else "")
    )
    return 1 if damages and not arguments.repair else 0


def _cache_prune(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_prune

    from .tables import cache_table

    limits = {"older_than_days": arguments.older_than_days, "max_gb": arguments.max_gb}
    chosen = {"fingerprints": arguments.fingerprints, "dry_run": arguments.dry_run}
    removed = cache_prune(_cache(arguments), **limits, **chosen)
    _print(cache_table(removed, "would be deleted" if arguments.dry_run else "deleted"))
    return 0


def _cache(arguments: argparse.Namespace) -> Path:
    from alignlab.cache import default_root

    return arguments.dir if arguments.dir is not None else default_root()


def _demo(words: Sequence[str]) -> int:
    from . import demo

    demo.main(words)
    return 0


def _eval(words: Sequence[str]) -> int:
    from . import evaluate

    return _leave(evaluate.main(words))


def _plan(words: Sequence[str]) -> int:
    from . import plan

    return plan.main(words)


def _report(arguments: argparse.Namespace) -> int:
    from alignlab.report import compare_runs, find_runs, write_report

    folders = []
    for name in arguments.runs:
        found = find_runs(Path(name))
        if not found:
            raise ValueError(f"{name}: no run; a run folder holds trainer_state.json, a folder of runs several of them")
        folders += found
    if len(folders) == 1:
        page = write_report(folders[0], arguments.output, arguments.plots)
    else:
        page = compare_runs(folders, arguments.output or "report.html", arguments.plots)
    print(f"{page}: {len(folders)} run{'s' if len(folders) > 1 else ''}")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    import shlex

    from alignlab.run import load_sweep, run_sweep, submit, write_array

    if (arguments.submit or arguments.sbatch) and arguments.slurm is None:
        raise ValueError("--submit, --sbatch: of what? --slurm launch/slurm_one_node.sbatch writes an array")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
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
