"""Training speed beside TRL's DPOTrainer: same model, pairs, batch and dtype, alternating, several repeats.

    make bench                                         # generated length profiles
    python benchmarks/speed.py --hh path/to/hh-rlhf-file.jsonl.gz --repeats 5

Both train a 6-layer decoder of width 256 from the same weights with a precomputed reference; TRL runs with its own
best settings (its fused LM head is always on). Every figure is from a process of its own; ratios are paired, repeat by
repeat, because a shared machine drifts. Writes CSV and PNG to ``--output``.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from workloads import (
    PROFILES,
    WARM_UP,
    apart,
    hh_rows,
    machine,
    make_model,
    make_tokenizer,
    profile_rows,
    settings_of,
    tell,
    timed,
    write_csv,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hh", type=Path, help="an HH-RLHF file; without it only generated profiles are run")
    parser.add_argument("--workloads", nargs="+", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a step")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "WORKLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        program, workload = options.worker
        tell(measure(program, workload, options))
        return
    workloads = options.workloads or (["hh"] if options.hh else []) + list(PROFILES)
    results = [
        {"workload": workload, "program": program, "repeat": repeat, **run_worker(program, workload)}
        for workload in workloads
        for repeat in range(options.repeats)
        for program in ("trl", "alignlab")
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(options.output / "speed.csv", results)
    summary = summarise(results, workloads)
    write_csv(options.output / "speed_ratios.csv", summary)
    show(summary)
    draw(summary, options.output / "speed.png")


def run_worker(program: str, workload: str) -> dict[str, float]:
    """Runs one measurement in a process of its own, with this process's options."""
    result = apart(program, workload)
    print(f"{workload:14} {program:9} {result['pairs_per_second']:.2f} pairs/s", flush=True)
    return result


# ---- one measurement ---------------------------------------------------------------------------------------------


def measure(program: str, workload: str, options: argparse.Namespace) -> dict[str, float]:
    """Trains and returns pairs a second, tokens through the model a step, and peak memory above the start (MB)."""
    import logging

    logging.disable(logging.WARNING)
    rows = hh_rows(options.hh) if workload == "hh" else profile_rows(*PROFILES[workload])
    random.Random(0).shuffle(rows)
    rows = rows[: options.pairs * (options.steps + WARM_UP)]
    folder = options.output / "work" / f"{program}-{workload}"
    return timed(make_trainer(program, rows, folder, options), options.pairs, options.steps)


def make_trainer(program: str, rows: list[dict[str, str]], folder: Path, options: argparse.Namespace) -> Any:
    """Returns the program's trainer over rows, with its reference scores made."""
    from transformers import AutoModelForCausalLM

    from alignlab import PreferenceConfig, PreferenceTrainer

    tokenizer, model = make_tokenizer(rows), make_model()
    settings = settings_of(folder, options)
    if program == "alignlab":
        args = PreferenceConfig(**settings, score_cache_dir=str(folder / "scores"))
        return PreferenceTrainer(model, args, "dpo", rows, None, tokenizer)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")  # TRL reloads its reference from the model's path
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    args = DPOConfig(**settings, precompute_ref_log_probs=True)
    return DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


# ---- results -----------------------------------------------------------------------------------------------------


def summarise(results: list[dict[str, Any]], workloads: list[str]) -> list[dict[str, Any]]:
    """Returns a row a workload: medians of both programs, and the paired ratios alignlab / TRL with their range."""
    summary = []
    for workload in workloads:
        sides = {
            program: [one for one in results if one["workload"] == workload and one["program"] == program]
            for program in ("trl", "alignlab")
        }
        row: dict[str, Any] = {"workload": workload}
        for key in ("pairs_per_second", "tokens_per_step", "peak_megabytes"):
            pairs = list(zip(sides["alignlab"], sides["trl"], strict=True))
            ratios = [ours[key] / theirs[key] for ours, theirs in pairs]
            row |= {
                f"{program}_{key}": round(statistics.median(o[key] for o in side), 2) for program, side in sides.items()
            }
            row |= {f"{key}_ratio": round(statistics.median(ratios), 3)}
            row |= {f"{key}_ratio_range": f"{min(ratios):.3f}-{max(ratios):.3f}"}
        summary.append({**row, **machine()})
    return summary


def show(summary: list[dict[str, Any]]) -> None:
    """Prints the ratios."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="alignlab / TRL (median of paired repeats, range)")
    for column in ("workload", "pairs a second", "tokens through the model", "peak memory"):
        table.add_column(column)
    for row in summary:
        cells = [
            f"{row[f'{key}_ratio']} ({row[f'{key}_ratio_range']})"
            for key in ("pairs_per_second", "tokens_per_step", "peak_megabytes")
        ]
        table.add_row(row["workload"], *cells)
    Console(width=120).print(table)


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """Draws pairs a second of both programs."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed: no PNG")
        return
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    places = range(len(summary))
    for shift, program in ((-0.2, "trl"), (0.2, "alignlab")):
        heights = [row[f"{program}_pairs_per_second"] for row in summary]
        axes.bar([place + shift for place in places], heights, width=0.4, label=program)
    axes.set_xticks(list(places), [row["workload"] for row in summary])
    axes.set_ylabel("pairs a second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
