"""A command on the tree of parsers, with what all commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    parent: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
) -> argparse.ArgumentParser:
    """Adds a command that ``run`` carries out, and returns its parser; ``text`` is said of it in every help."""
    shown = with_examples(*examples)
    parser: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, allow_abbrev=False, **shown)
    parser.set_defaults(run=run)
    return parser


def add_reader(parent: Any, name: str, text: str) -> None:
    """Names a command that reads its words itself, because its options are the keys of a config, or a parser's own."""
    parent.add_parser(name, help=text, add_help=False)


def with_examples(*examples: str, text: str = "") -> dict[str, Any]:
    """Returns what an ``ArgumentParser`` is given so that its help ends with examples, after ``text``."""
    lines = ([text, ""] if text else []) + ["examples:", *(f"  {example}" for example in examples)]
    return {"epilog": "\n".join(lines), "formatter_class": argparse.RawDescriptionHelpFormatter}


def both_ways(parser: Any) -> Callable[..., None]:
    """Returns ``add_argument`` for options that may be written ``--top-p`` and, as in a config, ``--top_p``."""

    def add(name: str, **options: Any) -> None:
        spelled = [name, name.replace("-", "_").replace("__", "--", 1)] if "-" in name[2:] else [name]
        parser.add_argument(*spelled, **options)

    return add
