"""Data at the size people have: preparing it, starting on it, and what a rank holds of it in memory.

    python benchmarks/data_size.py [--rows 1000000] [--entries 2000000] [--folder runs/data-size] [--workers 2]

Rows are made from a fixed seed. Four questions, each answered in processes of their own: how rows a second compare with
TRL's DPOTrainer on the same conversations; whether the rate at the full number is that at a tenth of it; how long a
second start takes to its first step, and what a rank holds then and after an epoch's reads; how long a score cache
takes to open. Processor time is given beside the clock: on a busy machine it is the figure to compare.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_size_parts import write_rows

CONVERSATIONS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    parser.add_argument("--folder", type=Path, default=Path("runs/data-size"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=("trl", "growth", "start", "cache"))
    parser.add_argument("--output", type=Path, help="a csv file of the figures")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures: list[dict[str, Any]] = []
    where = place()
    for name in options.only or ("trl", "growth", "start", "cache"):
        figures += MEASURES[name](options)
    if options.output:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["measure", "case", "figure", "unit", "machine", "versions"])
            writer.writeheader()
            writer.writerows({**one, **where} for one in figures)


def compare_with_trl(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows a second of TRL's preparation and ours, in turns, with one worker and two."""
    write_rows(options.folder / "conversations.jsonl", options.conversations, conversational=True)
    found = []
    for workers in (1, 2):
        case, spent = counted(workers, "worker"), {}
        for name in ("trl", "alignlab"):
            spent[name] = part(options.folder, name, workers)
            found += rates("preparation", f"{name}, {case}", options.conversations, spent[name])
        for kind, unit in {"cpu": "x per cpu s", "clock": "x per s"}.items():
            found.append(figure("preparation, ours to TRL's", case, spent["trl"][kind] / spent["alignlab"][kind], unit))
    return found


def compare_sizes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows a second of the whole set and of a tenth of it, at a first start."""
    shutil.rmtree(options.folder / "cache", ignore_errors=True)
    found = []
    for rows in (options.rows // 10, options.rows):
        write_rows(options.folder / f"pairs-{rows}.jsonl", rows, conversational=False)
        told = part(options.folder, "first", rows, options.workers)
        found += rates("first start", f"{rows} rows, {counted(options.workers, 'worker')}", rows, told)
        found += [
            figure("first start", f"{rows} rows", told["bytes"] / rows, "bytes/row"),
            figure("first start", f"{rows} rows, the process that prepares", told["peak"], "MB peak"),
            figure("first start", f"{rows} rows, the process that prepares", told["anonymous"], "MB anonymous"),
        ]
    return found


def start_again(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From the end of imports to the first step, and the memory of a rank, at a start that finds all prepared."""
    write_rows(options.folder / f"pairs-{options.rows}.jsonl", options.rows, conversational=False)
    part(options.folder, "first", options.rows, options.workers)
    found = []
    for ranks in (1, 2):
        case = f"{options.rows} rows, {counted(ranks, 'rank')}"
        told = part(options.folder, "again", options.rows, ranks=ranks)["figures"]
        found += [figure(f"second start, {name}", case, value, unit) for name, value, unit in told]
    return found


def open_scores(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Opening a score cache, with its index, and reading from it."""
    told = part(options.folder, "scores", options.entries)
    case = f"{options.entries} entries"
    return [
        figure("score cache opens", case, told["clock"], "s"),
        figure("score cache opens", case, told["cpu"], "cpu s"),
        figure("score cache opens", case, told["anonymous"], "MB anonymous"),
    ]


MEASURES = {"trl": compare_with_trl, "growth": compare_sizes, "start": start_again, "cache": open_scores}


def rates(measure: str, case: str, rows: int, told: dict[str, float]) -> list[dict[str, Any]]:
    units = {"cpu": "rows/cpu s", "clock": "rows/s"}
    return [figure(measure, case, rows / told[kind], unit) for kind, unit in units.items()]


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def figure(measure: str, case: str, value: float, unit: str) -> dict[str, Any]:
    print(f"{measure:40} {case:32} {value:12,.1f} {unit}", flush=True)
    return {"measure": measure, "case": case, "figure": f"{value:.2f}", "unit": unit}


def part(folder: Path, *words: object, ranks: int = 1) -> dict[str, Any]:
    """Runs one part in a process of its own (in several ranks, that of rank 0) and returns what it prints last."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    script = Path(__file__).with_name("data_size_parts.py")
    command = [sys.executable, *launcher, str(script), str(folder), *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return told


def place() -> dict[str, str]:
    """Where it was measured: cores, how many processes wanted them when it began, and what was installed."""
    packages = ("torch", "transformers", "trl", "tokenizers", "datasets", "pyarrow")
    versions = [f"python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in packages)]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kind = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    machine = f"{os.cpu_count()} x {kind}, load {os.getloadavg()[0]:.0f}"
    return {"machine": machine, "versions": ", ".join(versions)}


if __name__ == "__main__":
    main()
