"""``alignlab judge``: scores every answer of a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import start_logging
from .evaluate import JUDGE_HELP, read_judge
from .launched import leave
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "score every answer of a file: by a function, a verifier, a reward model or an endpoint"
    examples = (
        "alignlab judge answers.jsonl --judge path/to/reward-model --name rm",
        "alignlab judge answers.jsonl --judge verify.py:answer --name check --output judged.jsonl",
    )
    parser = add_command(commands, "judge", run, text, *examples)
    parser.add_argument("answers", type=Path, metavar="ANSWERS.jsonl", help="what `alignlab sample` wrote")
    parser.add_argument("--judge", required=True, metavar="JUDGE", help=JUDGE_HELP)
    parser.add_argument("--name", default="score", help="what its scores are called in the file (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="by default the scores are added in place")
    parser.add_argument("--again", action="store_true", help="ask again about answers that were left unjudged")


def run(arguments: argparse.Namespace) -> int:
    """Judges; returns the exit status."""
    start_logging()
    from alignlab.judges import judge_answers

    judge = read_judge(arguments.judge)
    assert judge is not None
    judges = {arguments.name: judge}
    judge_answers(arguments.answers, judges, output=arguments.output, again=arguments.again)
    return leave(0)
