"""Each of the seven losses on the demo's task: true reward over the supervised start, several seeds.

    make bench-losses
    python benchmarks/bench_losses.py --losses dpo kto --seeds 0 1 2 --output runs/bench-losses

Each seed draws its own rows and weights; all losses of a seed start from the same supervised model. Writes
``losses.csv`` (a row a run) and prints mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
from pathlib import Path
from typing import Any

SEVEN = ("dpo", "ipo", "kto", "orpo", "tdpo", "modpo", "group_robust")
FIGURES = ("greedy", "sampled", "accuracy", "kl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=list(SEVEN))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=-1, help="of preference training; by default one epoch")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-losses"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows += run_seed(options.output / f"seed{seed}", options.losses, seed, options.steps)
        write(options.output / "losses.csv", rows)
    show(rows, options.losses)


def run_seed(folder: Path, losses: list[str], seed: int, steps: int) -> list[dict[str, Any]]:
    """Makes the task and the supervised start of a seed, trains every loss from it, and measures all of them."""
    from alignlab.cli import demo

    demo.prepare(folder, seed)
    start = demo.supervised_start(folder, seed)
    rows = [measured("supervised start", start, start, seed)]
    for loss in losses:
        rows.append(measured(loss, demo.preference_training(folder, loss, seed, max_steps=steps), start, seed))
        print(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
    return rows


def measured(name: str, path: Path, start: Path, seed: int) -> dict[str, Any]:
    """Returns the figures of one model on held-out questions."""
    from alignlab.cli import demo

    figures = demo.evaluate(path, start, seed)
    return {"loss": name, "seed": seed, **{figure: getattr(figures, figure) for figure in FIGURES}}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a row a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def show(rows: list[dict[str, Any]], losses: list[str]) -> None:
    """Prints mean and spread (least to most) over the seeds, and the gain in true reward over the supervised start."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out questions: mean over seeds (least to most)")
    for column in ("loss", "greedy true reward", "gain over start", "sampled", "accuracy", "KL, nats an answer"):
        table.add_column(column)
    start = {row["seed"]: row["greedy"] for row in rows if row["loss"] == "supervised start"}
    for loss in ("supervised start", *losses):
        mine = [row for row in rows if row["loss"] == loss]
        columns = {figure: [row[figure] for row in mine] for figure in FIGURES}
        gains = [row["greedy"] - start[row["seed"]] for row in mine]
        cells = [columns["greedy"], gains, columns["sampled"], columns["accuracy"], columns["kl"]]
        table.add_row(loss, *(f"{statistics.mean(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in cells))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
