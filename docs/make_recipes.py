"""Writes docs/recipes.md from the recipes: python docs/make_recipes.py; with --plan their memory is planned anew."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from alignlab.config import Recipe, load_config, read_yaml, recipes

DOCS = Path(__file__).resolve().parent
PLANNED = DOCS / "results" / "recipes.csv"
GPUS, MEMORIES = (1, 2, 4, 8), (24, 48, 80, 141)

PAGE = """# Which recipe do I start from?

Made by `python docs/make_recipes.py` from the heads of [`configs/recipes`](../configs/recipes): edit those. A recipe is
a whole run of a real model with real data. Every value of it names where it is from; what was changed, and what could
not be looked up, it says too. None of them was run here: the scores are what their sources published.

```console
$ alignlab new zephyr_dpo_7b my.yaml
alignlab plan my.yaml
alignlab train my.yaml
```

- `alignlab recipes` lists them; `alignlab recipes NAME` prints one with all its comments.
- `alignlab new NAME my.yaml` writes a copy to edit, comments and all.
- `alignlab new NAME try.yaml --tiny` writes the same run shrunk to two layers with random weights, 64 made-up rows and
  3 steps; loss, schedule and adapter stay. It trains in seconds on any machine, offline; in a test each recipe does.
- `alignlab plan NAME` plans its memory on the cards that its head names; offline, by the [table of
  shapes](../alignlab/models/shapes.yaml).
- `alignlab train NAME --model.name_or_path path/to/mine` goes straight from the recipe, with a model of your own.

| recipe | what | cards | memory on each | published score |
|---|---|---|---|---|
{table}

A number in brackets is one of the sources that the recipe lists in its head.

## On which cards does it fit?

GB on each card at the fullest moment, as [the planner](memory.md) has it: planned, not measured. Rows are as long as
`max_length` lets them be, half of it the prompt; micro-batch and engine are the recipe's. On fewer cards than it names,
raise `gradient_accumulation_steps` so that the step keeps its pairs.

| recipe | 1 card | 2 cards | 4 cards | 8 cards |
|---|---|---|---|---|
{peaks}

The fewest cards of a size that hold it, of 1, 2, 4 and 8:

| recipe | 24 GB | 48 GB | 80 GB | 141 GB |
|---|---|---|---|---|
{fewest}

Where it does not fit, `alignlab plan NAME --gpus N --gpu-memory GB` says the smallest change that helps.
"""


def page() -> str:
    """Returns the page."""
    rows = {(row["recipe"], int(row["cards"])): float(row["gb"]) for row in read_planned()}
    every = recipes()
    return PAGE.format(
        table="\n".join(map(_summary, every)),
        peaks="\n".join(
            _line(one, [f"{rows[one.name, n]:.1f}" if (one.name, n) in rows else "" for n in GPUS]) for one in every
        ),
        fewest="\n".join(_line(one, [_fewest(rows, one.name, size) for size in MEMORIES]) for one in every),
    )


def read_planned() -> list[dict[str, str]]:
    """Returns the rows of the table of planned peaks: recipe, cards, gb."""
    with PLANNED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _summary(recipe: Recipe) -> str:
    text = {key: value.replace("|", "\\|") for key, value in recipe.fields.items()}
    name = f"[`{recipe.name}`](../configs/recipes/{recipe.path.name})"
    cells = (name, recipe.purpose, text["cards"], text["memory"].split(" on ")[0], text["score"])
    return f"| {' | '.join(cells)} |"


def _line(recipe: Recipe, cells: list[str]) -> str:
    return f"| `{recipe.name}` | {' | '.join(cells)} |"


def _fewest(rows: dict[tuple[str, int], float], name: str, memory: int) -> str:
    found = [count for count in GPUS if rows.get((name, count), 1e9) <= memory]
    return str(found[0]) if found else "-"


def plan_all() -> None:
    """Plans each recipe on 1, 2, 4 and 8 cards, those without an engine that shares on one, and writes the table."""
    from alignlab.planner import GB, plan

    with PLANNED.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("recipe", "cards", "gb"))
        for recipe in recipes():
            for count in GPUS if "deepspeed" in read_yaml(recipe.path) else GPUS[:1]:
                found = plan(load_config(recipe.path), count, 1000.0)  # enough, so that no change is looked for
                writer.writerow((recipe.name, count, f"{found.estimate.peak / GB:.2f}"))
                file.flush()
                print(recipe.name, count, f"{found.estimate.peak / GB:.2f}", flush=True)


if __name__ == "__main__":
    if "--plan" in sys.argv[1:]:
        plan_all()
    (DOCS / "recipes.md").write_text(page(), encoding="utf-8")
