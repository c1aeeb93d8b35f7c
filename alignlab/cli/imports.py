"""``alignlab import``: the config of another trainer made into ours, with what became of each key."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from .console import show
from .parsers import add_command

SOURCES = ("trl", "llamafactory", "axolotl")


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "take a config of TRL, LLaMA-Factory or axolotl over"
    examples = ("alignlab import trl dpo_config.yaml my.yaml", "alignlab import axolotl their.yaml")
    parser = add_command(commands, "import", run, text, *examples)
    parser.add_argument("source", choices=SOURCES, help="whose config it is")
    parser.add_argument("config", metavar="CONFIG", type=Path, help="their YAML file")
    parser.add_argument("file", metavar="FILE.yaml", type=Path, nargs="?", help="where ours goes; else it is printed")
    parser.add_argument("--trainer", help="of TRL's: dpo, kto, orpo, cpo, reward (default: as its keys say, else dpo)")


def run(arguments: argparse.Namespace) -> int:
    """Writes or prints our config, and says what became of each key; returns the exit status."""
    from rich.table import Table

    from alignlab.config import import_config

    file = arguments.file
    if file is not None and file.exists():
        raise ValueError(f"{file} is there already; choose another name")
    found = import_config(arguments.source, arguments.config, arguments.trainer)
    if file is None:
        print(found.to_yaml(), end="")
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(found.to_yaml(), encoding="utf-8")
    table = Table("their key", "what became of it", "")
    for line in found.lines:
        table.add_row(line.key, line.fate, line.text)
    counts = Counter(line.fate for line in found.lines)
    show(table, ", ".join(f"{count} {fate}" for fate, count in counts.items()))
    print(f"alignlab train {shlex.quote(str(file))}")
    return 0
