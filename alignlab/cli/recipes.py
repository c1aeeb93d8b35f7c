"""``alignlab recipes``: lists the shipped recipes, or shows one."""

from __future__ import annotations

import argparse
from typing import Any

from .console import show
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "list the recipes for real models, or show one"
    parser = add_command(commands, "recipes", run, text, "alignlab recipes", "alignlab recipes zephyr_dpo_7b")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe: its config, with where each value is from")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of recipes, or the file of one; returns the exit status."""
    from rich.table import Table

    from alignlab.config import find_recipe, read_yaml, recipes

    if arguments.name is not None:
        print(find_recipe(arguments.name).path.read_text(encoding="utf-8"), end="")
        return 0
    table = Table("recipe", "loss", "cards", "memory", "", show_lines=True)
    for one in recipes():
        loss = read_yaml(one.path)["loss"]["name"]
        table.add_row(one.name, loss, one.fields["cards"], one.fields["memory"].split(",")[0], one.purpose)
    show(table, "memory is planned, not measured; `alignlab new RECIPE my.yaml` writes a copy to edit")
    return 0
