"""The commands as one program: which there are, and what becomes of errors."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from . import (
    cache,
    data,
    demo,
    evaluate,
    imports,
    judge,
    losses,
    new,
    pair,
    plan,
    recipes,
    report,
    rounds,
    sample,
    score,
    sweep,
    train,
)
from .console import debugging
from .launched import without_local_rank

# Everything heavy (torch, transformers, rich) is imported by the command that needs it, so that help comes at once.

Reader = Callable[[Sequence[str]], int | None]
READERS: dict[str, Reader] = {  # the commands that read their words themselves
    "train": train.main,
    "score": score.main,
    "plan": plan.main,
    "eval": evaluate.main,
    "sample": sample.main,
    "rounds": rounds.main,
    "demo": demo.main,
}
LONGEST = 400  # characters of a message that we did not write
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; an error is one line, without a traceback.

    Errors of the user end with status 2, those that a library raised unexpectedly with 1 and where they came from.
    ``ALIGNLAB_DEBUG=1`` lets the traceback through.
    """
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # advice on inference, at every import
    try:
        if words and words[0] in READERS:
            return READERS[words[0]](words[1:]) or 0
        arguments = _parser().parse_args(words or ["--help"])
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("alignlab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debugging():
            raise
        expected = isinstance(error, (ValueError, OSError, FloatingPointError))
        _say(str(error) if expected and str(error) else unexpected(error))
        return USER_ERROR if expected else FAILED


def unexpected(error: BaseException) -> str:
    """Returns an error that nobody foresaw as one line: what we were doing, its kind, its words, and the place."""
    package = Path(__file__).parents[1]
    ours = [one for one in traceback.extract_tb(error.__traceback__) if package in Path(one.filename).parents]
    place = f" (in {Path(ours[-1].filename).name}, {ours[-1].name}, line {ours[-1].lineno})" if ours else ""
    doing = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    words = " ".join(str(error).split()) or "no message"
    shown = words if len(words) <= LONGEST else f"{words[:LONGEST]}..."
    return f"{doing}{type(error).__name__}: {shown}{place}; ALIGNLAB_DEBUG=1 shows the traceback"


def _say(text: str) -> None:
    from alignlab.data import printable

    print(f"alignlab: error: {printable(text)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alignlab", description="Train language models on preferences.")
    parser.add_argument("--version", action="version", version=f"alignlab {metadata.version('alignlab')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    every = (
        train,
        score,
        plan,
        recipes,
        new,
        imports,
        losses,
        data,
        cache,
        sample,
        judge,
        pair,
        rounds,
        evaluate,
        report,
        sweep,
        demo,
    )
    for one in every:
        one.add_to(commands)
    return parser
