"""The commands as one program: which there are, and what becomes of errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from . import cache, data, demo, evaluate, losses, plan, report, score, sweep, train
from .launched import without_local_rank

# Everything heavy (torch, transformers, rich) is imported by the command that needs it, so that help comes at once.

Reader = Callable[[Sequence[str]], int | None]
READERS: dict[str, Reader] = {  # the commands that read their words themselves
    "train": train.main,
    "score": score.main,
    "plan": plan.main,
    "eval": evaluate.main,
    "demo": demo.main,
}
USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; errors of the user are one line, without a traceback.

    ``ALIGNLAB_DEBUG=1`` lets the traceback through.
    """
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # advice on inference, at every import
    try:
        if words and words[0] in READERS:
            return READERS[words[0]](words[1:]) or 0
        arguments = _parser().parse_args(words or ["--help"])
        return int(arguments.run(arguments))
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ALIGNLAB_DEBUG", "0") not in ("", "0"):
            raise
        print(f"alignlab: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("alignlab: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alignlab", description="Train language models on preferences.")
    parser.add_argument("--version", action="version", version=f"alignlab {metadata.version('alignlab')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for one in (train, score, plan, losses, data, cache, evaluate, report, sweep, demo):
        one.add_to(commands)
    return parser
