"""``alignlab data check``: looks at data without a model."""

from __future__ import annotations

import argparse
from typing import Any

from .console import show
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    data = commands.add_parser("data", help="look at data without a model").add_subparsers(required=True)
    check = add_command(data, "check", run, "every bad row by file and line; lengths, duplicates, groups")
    check.add_argument("files", nargs="+", metavar="FILE", help="jsonl(.gz), json, parquet, csv, arrow")
    check.add_argument("--tokenizer", help="folder or hub id: count lengths in its tokens; by default in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Checks files and prints what was found; returns 1 if a row is bad."""
    from alignlab.data import check, render

    tokenizer = None
    if arguments.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    found = check(arguments.files, tokenizer)
    show(render(found))
    return 1 if found.report.rows_rejected else 0
