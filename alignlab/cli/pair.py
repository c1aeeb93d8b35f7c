"""``alignlab pair``: pairs of judged answers, and a table of what became of every answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import show, start_logging
from .parsers import add_command, both_ways


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make pairs of judged answers: alignlab pair ANSWERS.jsonl --rule best_worst --output pairs.jsonl"
    examples = (
        "alignlab pair answers.jsonl --rule best_worst --min-margin 0.1 --output pairs.jsonl",
        "alignlab pair answers.jsonl --rule human_own --output spin.jsonl",
    )
    parser = add_command(commands, "pair", run, text, *examples)
    add = both_ways(parser)
    add("answers", type=Path, metavar="ANSWERS.jsonl", help="what `alignlab judge` scored")
    add("--output", required=True, type=Path, metavar="FILE.jsonl", help="the pairs")
    add("--rule", default="best_worst", help="which answers meet (%(default)s); --rule help lists them")
    add("--score", metavar="NAME", help="the judge whose scores decide, where there are several")
    add("--min-margin", type=float, default=0.0, help="drop pairs whose scores are not further apart (%(default)s)")
    add("--max-length-ratio", type=float, metavar="R", help="drop pairs of which one is over R times as long")
    add("--length-penalty", type=float, default=0.0, help="taken off the score for each token (%(default)s)")
    add("--unfinished", choices=("drop", "keep"), default="drop", help="answers that were cut off (%(default)s)")
    add("--keep-duplicates", action="store_true", help="also answers with the tokens of another one")
    add("--per-prompt", type=int, metavar="N", help="most pairs of a prompt")
    add("--gold", action="store_true", help="put the human answer beside each pair, for losses with a gold completion")
    add("--sigmas", type=float, default=2.0, help="of best_sigma (%(default)s)")
    add("--beta", type=float, default=0.5, help="of rso: the temperature of acceptance (%(default)s)")
    add("--threshold", type=float, default=0.5, help="of pass_fail: the least score that passes (%(default)s)")
    add("--least", type=float, metavar="S", help="of best: leave out prompts whose best answer scores less")
    add("--seed", type=int, default=0, help="of what a rule draws (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Pairs, prints what became of every answer, and returns the exit status."""
    from alignlab.pairing import RULES, PairOptions, describe, pair

    start_logging()
    if arguments.rule == "help":
        show(*(f"{name:12} {describe(name)}" for name in RULES))
        return 0
    told = {name: value for name, value in vars(arguments).items() if name in PairOptions.__dataclass_fields__}
    account = pair(arguments.answers, arguments.output, PairOptions(**told, dedupe=not arguments.keep_duplicates))
    show(account_table(account), f"{account.pairs} rows from {account.prompts} prompts: {arguments.output}")
    return 0


def account_table(account: Any) -> Any:
    """Returns what became of every answer as a table whose last line is their sum."""
    from rich.table import Table

    table = Table("answers", "what became of them", title="answers", title_justify="left", show_footer=True)
    for _, meaning, count in account.rows():
        table.add_row(str(count), meaning)
    table.columns[0].footer, table.columns[1].footer = str(account.answers), "all answers"
    return table
