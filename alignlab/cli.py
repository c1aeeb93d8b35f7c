"""The commands; each hands over to the room that does the work."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from .config_parser import Key

# Everything heavy (torch, transformers) is imported by the command that needs it, so that help comes at once.

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; errors of the user are one line, without a traceback.

    ``ALIGNLAB_DEBUG=1`` lets the traceback through.
    """
    words = _without_local_rank(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["train"]:  # its options are the keys of the config, not argparse's
            return _leave(_train(words[1:]))
        arguments = _parser().parse_args(words or ["--help"])
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
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
    parser = argparse.ArgumentParser(
        prog="alignlab", description="Train language models on preferences.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"alignlab {metadata.version('alignlab')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = "train as a config says: alignlab train CONFIG.yaml [--loss.beta 0.2 --learning_rate 1e-6 ...]"
    commands.add_parser("train", help=train, add_help=False)

    losses = commands.add_parser("losses", help="list the losses, describe one, or check your own", allow_abbrev=False)
    losses.add_argument("words", nargs="*", metavar="[NAME | check FILE.py:Name]", help="a loss; or a loss of your own")
    losses.set_defaults(run=_losses)

    data = commands.add_parser("data", help="look at data without a model", allow_abbrev=False)
    check = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "check", help="rows, lengths, duplicates, length bias, groups; every bad row by file and line"
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="jsonl(.gz), json, parquet, csv, arrow")
    check.add_argument("--tokenizer", help="folder or hub id; lengths are then counted in tokens")
    check.add_argument("--max_length", type=int, default=1024, help="tokens of prompt and completion (%(default)s)")
    check.set_defaults(run=_data_check)

    cache = commands.add_parser("cache", help="look after the scores of frozen models", allow_abbrev=False)
    actions = cache.add_subparsers(required=True, metavar="COMMAND")
    for action, text in _CACHE_ACTIONS.items():
        one = actions.add_parser(action, help=text, description=text, allow_abbrev=False)
        one.add_argument("--dir", help="the cache; by default where runs put it")
        if action == "prune":
            one.add_argument("--days", type=float, default=30, help="drop what was not used for so long (%(default)s)")
        one.set_defaults(run=_cache, action=action)

    demo = commands.add_parser(
        "demo", help="a small model learns a preference, from nothing, in minutes", add_help=False
    )
    demo.set_defaults(run=_demo)
    return parser


_CACHE_ACTIONS = {
    "info": "list the models whose scores are kept, with sizes",
    "verify": "read every shard and name the damaged ones",
    "prune": "drop what was not used for long",
}


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False)


def _train(words: Sequence[str]) -> int:
    from .config_parser import split_command_line

    if not words or {"-h", "--help"} & set(words):
        return _train_help()
    config, options = split_command_line(words)
    if config is None:
        raise ValueError("which config? alignlab train CONFIG.yaml [--KEY VALUE ...]")
    from .config import load_config

    run_config = load_config(config, [f"--{key}={text}" for key, text in options])
    from . import run

    return int(run.train(run_config) or 0)


def _train_help() -> int:
    from rich.table import Table

    from .config import schema
    from .config_parser import readable_type

    console = _console()
    console.print("usage: alignlab train CONFIG.yaml [--KEY VALUE ...]\n", markup=False, highlight=False)
    console.print(
        "CONFIG.yaml is a file or the name of a shipped config. Every key below can stand in it and on the command\n"
        "line, where dots reach into blocks: --loss.beta 0.2 --learning_rate 1e-6 --peft.r 16\n",
        markup=False,
        highlight=False,
    )
    for title, keys in schema().groups.items():
        table = Table("key", "type", "default", "", title=title, title_justify="left", box=None, pad_edge=False)
        for key in keys:
            table.add_row(key.name, readable_type(key.type), _default(key), key.help)
        console.print(table, "", markup=False, highlight=False)
    return 0


def _default(key: Key) -> str:
    return "(required)" if key.default is dataclasses.MISSING else _value(key.default)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return str(getattr(value, "value", value))


def _losses(arguments: argparse.Namespace) -> int:
    from .losses import describe, names

    words = arguments.words
    if words[:1] == ["check"]:
        if len(words) != 2:
            raise ValueError("which loss? alignlab losses check FILE.py:Name")
        return _losses_check(words[1])
    if len(words) > 1:
        raise ValueError(f"one loss at a time, found {' '.join(words)}")
    from rich.table import Table

    table = Table("loss", "", "needs", "options", show_lines=True)
    for name in words or names():
        one = describe(name)
        lines = [one.summary] + ([f"also called {', '.join(one.aliases)}"] if one.aliases else [])
        if words:
            lines += [f"{key}: {text}" for key in ("formula", "source", "elsewhere") if (text := getattr(one, key))]
        options = "\n".join(f"{key}: {_value(value)}" for key, value in one.defaults.items())
        table.add_row(name, "\n".join(lines).replace("``", ""), _needs(one.needs), options)
    _console().print(table, markup=False)
    return 0


def _needs(needs: Any) -> str:
    """Returns what differs from the defaults of ``Needs``, one a line."""
    lines = [needs.data]
    for field in dataclasses.fields(needs):
        value = getattr(needs, field.name)
        if field.name not in ("data", "totals_from") and value != field.default:
            lines.append(field.name if value is True else f"{field.name}: {_value(value)}")
    return "\n".join(lines)


def _losses_check(spec: str) -> int:
    from .losses import build
    from .losses._contract import CHECKS, check

    findings = check(build(spec))
    for finding in findings:
        print(finding)
    verdict = f"{len(findings)} breaches of the contract" if findings else "keeps the contract"
    print(f"{spec}: {verdict} ({len(CHECKS)} checks)")
    return 1 if findings else 0


def _data_check(arguments: argparse.Namespace) -> int:
    from .data import check

    return int(check.main(arguments.files, tokenizer=arguments.tokenizer, max_length=arguments.max_length))


def _cache(arguments: argparse.Namespace) -> int:
    from . import cache_admin

    raise NotImplementedError(cache_admin)


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo

    return int(demo.main())
