"""``alignlab new``: a copy of a recipe to edit, or one that runs on a laptop in a minute."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsers import add_command

if TYPE_CHECKING:
    from alignlab.config import Recipe, RunConfig

SUFFIXES = (".yaml", ".yml")
TINY_ROWS = 64
TINY: dict[str, Any] = {  # what --tiny sets beside model and data; everything else stays as the recipe has it
    "deepspeed": None,
    "max_steps": 3,
    "max_length": 256,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_samples": 0,
}


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    text = "write a copy of a recipe, with its comments, to edit"
    examples = ("alignlab new zephyr_dpo_7b my.yaml", "alignlab new zephyr_dpo_7b try.yaml --tiny")
    parser = add_command(commands, "new", run, text, *examples)
    parser.add_argument("recipe", metavar="RECIPE", help="its name; `alignlab recipes` lists them")
    parser.add_argument("file", metavar="FILE.yaml", type=Path, help="where the copy goes; it may not be there yet")
    tiny = "two layers with random weights and made-up rows, in a folder beside it: 3 steps on any machine, offline"
    parser.add_argument("--tiny", action="store_true", help=tiny)


def run(arguments: argparse.Namespace) -> int:
    """Writes the copy and says what to do with it; returns the exit status."""
    from alignlab.config import find_recipe

    recipe, file = find_recipe(arguments.recipe), arguments.file
    if file.suffix not in SUFFIXES or not str(file).isprintable():
        raise ValueError(f"{str(file)!r} is no name for the copy, which has to end in {' or '.join(SUFFIXES)}")
    folder = file.with_suffix("")
    for path in (file, folder) if arguments.tiny else (file,):
        if path.exists():
            raise ValueError(f"{path} is there already; choose another name")
    text = tiny(recipe, folder) if arguments.tiny else recipe.path.read_text(encoding="utf-8")
    file.parent.mkdir(parents=True, exist_ok=True)
    named = shlex.quote(str(file))
    file.write_text(text.replace(f"{recipe.name}.yaml", named), encoding="utf-8")
    print(f"alignlab plan {named}\nalignlab train {named}")
    return 0


def tiny(recipe: Recipe, folder: Path) -> str:
    """Returns the recipe shrunk to two layers and three steps, and writes its model and rows into a folder."""
    from alignlab.config import load_config, read_yaml, write_yaml

    values = read_yaml(recipe.path)
    data, optimiser = {"train": str(folder / "rows.jsonl")}, str(values.get("optim", ""))
    values["model"] = {**values["model"], "name_or_path": str(folder / "model")}
    values["model"].pop("tokenizer", None)
    values |= {**TINY, "data": data, "output_dir": str(folder / "run")}
    if optimiser.startswith("paged_"):
        values["optim"] = "adamw_torch"  # paged states are a GPU's
    _write_parts(load_config(recipe.path), folder)
    head = f"# {recipe.name}, to try: two layers, random weights, made-up rows, 3 steps; otherwise the recipe as it is."
    return f"{head}\n#\n#   alignlab train {recipe.name}.yaml\n\n{write_yaml(values)}"


def _write_parts(config: RunConfig, folder: Path) -> None:
    from alignlab.data import toy
    from alignlab.models import write_tiny

    from .demo import build_tokenizer

    rows = toy.pairs(TINY_ROWS)
    turns = (turn["content"] for row in rows for turn in row["prompt"] + row["chosen"] + row["rejected"])
    write_tiny(config.model, build_tokenizer(turns), folder / "model")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
