"""``alignlab data check`` and ``alignlab data show``: look at data without a model."""

from __future__ import annotations

import argparse
from typing import Any

from .console import show
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the commands and their options."""
    data = commands.add_parser("data", help="look at data without a model").add_subparsers(required=True)
    text = "every bad row by file and line; lengths, duplicates, groups"
    examples = ("check pairs.jsonl", "check pairs.jsonl --tokenizer path/to/model --near --html check.html")
    check = add_command(data, "check", run, text, *(f"alignlab data {one}" for one in examples))
    _add_source(check)
    check.add_argument("--rows", type=int, metavar="N", help="look at a sample of N rows, drawn evenly; by default all")
    check.add_argument("--against", nargs="+", metavar="FILE", help="another set: count the prompts that are in both")
    check.add_argument("--near", action="store_true", help="also count prompts that are nearly the same (MinHash)")
    check.add_argument("--rows-per-step", type=int, default=64, metavar="N", help="of one optimiser step (64)")
    check.add_argument("--json", metavar="FILE", help="write the figures as JSON, too")
    check.add_argument("--html", metavar="FILE", help="write the figures as a page, too")
    text = "rows as the model will see them, and what of them counts"
    rows = add_command(data, "show", run_show, text, "alignlab data show pairs.jsonl --tokenizer path/to/model -n 5")
    _add_source(rows)
    rows.add_argument("-n", type=int, default=3, metavar="N", help="how many of the first rows (3)")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="jsonl(.gz), json, parquet, csv, arrow")
    parser.add_argument("--tokenizer", help="folder or hub id: its tokens and chat template; by default bytes")
    parser.add_argument("--format", help="the public set that the rows are read as; by default found by the fields")


def run(arguments: argparse.Namespace) -> int:
    """Checks files and prints what was found; returns 1 if a row is bad."""
    import json
    from pathlib import Path

    from alignlab.data import CheckOptions, as_values, check, render, write_page

    asked = CheckOptions(arguments.rows, arguments.against, arguments.near, arguments.rows_per_step)
    found = check(_sources(arguments), _tokenizer(arguments), asked=asked)
    show(render(found))
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(as_values(found), indent=2) + "\n", encoding="utf-8")
    if arguments.html is not None:
        write_page(found, arguments.html)
    return 1 if found.report.rows_rejected else 0


def run_show(arguments: argparse.Namespace) -> int:
    """Prints the first rows."""
    from alignlab.data import peek

    if arguments.n < 1:
        raise ValueError(f"-n must be at least 1, found {arguments.n}")
    show(peek(_sources(arguments), arguments.n, _tokenizer(arguments)))
    return 0


def _sources(arguments: argparse.Namespace) -> list[Any]:
    """The files, each with the format that was asked for."""
    if arguments.format is None:
        return list(arguments.files)
    return [{"path": file, "format": arguments.format} for file in arguments.files]


def _tokenizer(arguments: argparse.Namespace) -> Any:
    if arguments.tokenizer is None:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(arguments.tokenizer)
