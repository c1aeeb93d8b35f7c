"""``alignlab losses``: lists the losses, describes one, or checks one of your own."""

from __future__ import annotations

import argparse
from typing import Any

from .console import show
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    parser = add_command(
        commands,
        "losses",
        run,
        "list the losses, describe one, or check your own",
        "alignlab losses",
        "alignlab losses ipo",
        "alignlab losses check mine.py:hinge",
    )
    parser.add_argument("words", nargs="*", metavar="[NAME | check FILE.py:Name]", help="a loss; or a loss of your own")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of losses, or what the contract's checks find; returns the exit status."""
    from alignlab.losses import describe, names

    from .tables import losses_table

    words = arguments.words
    if words[:1] == ["check"]:
        if len(words) != 2:
            raise ValueError("which loss? alignlab losses check FILE.py:Name")
        return _check(words[1])
    show(losses_table(map(describe, words or names()), details=bool(words)))
    return 0


def _check(spec: str) -> int:
    from alignlab.losses import CHECKS, build, check

    findings = check(build(spec))
    for finding in findings:
        print(finding)
    verdict = f"{len(findings)} breaches of the contract" if findings else "keeps the contract"
    print(f"{spec}: {verdict} ({len(CHECKS)} checks)")
    return 1 if findings else 0
