"""A reward model's training step beside TRL's RewardTrainer: same weights, pairs, batch and dtype, alternating.

    python benchmarks/reward_speed.py [--repeats 3] [--steps 6] [--output runs/bench]

Both train a value head on a 6-layer decoder of width 256. Every figure is from a process of its own, and ratios are
paired, repeat by repeat. ``pairs_per_second`` is by the clock; ``pairs_per_processor_second`` by the processor time of
the process, which a busy machine disturbs less. Memory is the peak above the start. Writes a CSV to ``--output``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from workloads import (
    PROFILES,
    WARM_UP,
    apart,
    machine,
    make_model,
    make_tokenizer,
    profile_rows,
    settings_of,
    tell,
    timed,
    write_csv,
)

KEYS = ("pairs_per_second", "pairs_per_processor_second", "tokens_per_step", "peak_megabytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["ultrafeedback", "tldr"], choices=list(PROFILES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a step")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "WORKLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        tell(measure(*options.worker, options))
        return
    found = [
        {"workload": workload, "program": program, "repeat": repeat, **run_worker(program, workload)}
        for workload in options.workloads
        for repeat in range(options.repeats)
        for program in ("trl", "alignlab")
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(options.output / "reward_speed.csv", [{**one, **machine()} for one in found])
    for workload in options.workloads:
        sides = [
            [one for one in found if (one["workload"], one["program"]) == (workload, program)]
            for program in ("alignlab", "trl")
        ]
        for key in KEYS:
            ratios = [ours[key] / theirs[key] for ours, theirs in zip(*sides, strict=True)]
            own, other = (statistics.median(one[key] for one in side) for side in sides)
            shown = f"{own:.4g} against {other:.4g}, {statistics.median(ratios):.2f} times ({min(ratios):.2f}"
            print(f"{workload:14} {key:28} {shown} to {max(ratios):.2f})")


def run_worker(program: str, workload: str) -> dict[str, float]:
    """Runs one measurement in a process of its own, with this process's options."""
    result = apart(program, workload)
    print(f"{workload:14} {program:9} {result['pairs_per_processor_second']:.2f} pairs a processor second", flush=True)
    return result


def measure(program: str, workload: str, options: argparse.Namespace) -> dict[str, float]:
    """Trains and returns throughput, tokens through the model a step, and peak memory above the start (MB)."""
    import logging

    logging.disable(logging.WARNING)
    rows = profile_rows(*PROFILES[workload])[: options.pairs * (options.steps + WARM_UP)]
    trainer = make_trainer(program, rows, options.output / "work" / f"{program}-{workload}", options)
    found = timed(trainer, options.pairs, options.steps)
    return {**found, "pairs_per_processor_second": options.pairs / found["processor_seconds_per_step"]}


def make_trainer(program: str, rows: list[dict[str, str]], folder: Path, options: argparse.Namespace) -> Any:
    """Returns the program's trainer over rows, from the same weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(rows)
    make_model().save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    settings = settings_of(folder, options)
    if program == "alignlab":
        from alignlab import PreferenceConfig, PreferenceTrainer

        return PreferenceTrainer(model, PreferenceConfig(**settings), "bradley_terry", rows, None, tokenizer)
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model, args=RewardConfig(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


if __name__ == "__main__":
    main()
