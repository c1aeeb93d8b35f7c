"""One step over lists of K completions, beside the same comparisons as pairs, packed and padded, and TRL on all pairs.

    python benchmarks/lists.py                       # four lists of four: 24 pairs a step
    python benchmarks/lists.py --completions 7 --lists 2

Every program sees the same answers to the same prompts in every step, with a precomputed reference: ``lists`` trains
``plackett_luce`` on whole lists, ``pairs packed`` and ``pairs padded`` train ``dpo`` on every two of them (``lists_as:
all``), and ``trl`` its DPOTrainer on the same pairs. Each figure is from a process of its own, in turns; seconds are of
the processor and of the wall, and ratios are paired, repeat by repeat. Writes CSV to ``--output``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

from speed import make_trainer
from workloads import WARM_UP, apart, make_model, make_tokenizer, tell, timed, write_csv

PROGRAMS = ("lists", "pairs packed", "pairs padded", "trl")
FIGURES = ("tokens_per_step", "processor_seconds_per_step", "seconds_per_step", "peak_megabytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=4, help="of a step")
    parser.add_argument("--completions", type=int, default=4, help="of a list")
    parser.add_argument("--words", type=int, nargs=2, default=(110, 44), help="of a prompt, of a completion")
    parser.add_argument("--steps", type=int, default=4, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_lists"))
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        tell(measure(options.worker, options))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        results += [{"program": program, "repeat": repeat, **run_worker(program)} for program in PROGRAMS]
        write_csv(options.output / "lists.csv", results)
    summary = summarise(results)
    write_csv(options.output / "lists_summary.csv", summary)
    for row in summary:
        print(json.dumps(row))


def run_worker(program: str) -> dict[str, float]:
    """Runs one measurement in a process of its own, with this process's options."""
    result = apart(program)
    print(f"{program:13} {result['processor_seconds_per_step']:.2f} s of the processor a step", flush=True)
    return result


def list_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns scored lists of random words, a step's more than are trained on; their lengths vary by a fifth."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 7))) for _ in range(2000)]

    def text(mean: int) -> str:
        return " ".join(chance.choices(words, k=round(mean * chance.uniform(0.8, 1.2))))

    prompt, completion = options.words
    return [
        {
            "prompt": text(prompt),
            "completions": [" " + text(completion) for _ in range(options.completions)],
            "scores": chance.sample(range(100), options.completions),
        }
        for _ in range(options.lists * (options.steps + WARM_UP))
    ]


def pairs_of(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns every two completions of every list as a pair."""
    pairs = []
    for row in rows:
        ranked = sorted(zip(row["scores"], row["completions"], strict=True), reverse=True)
        for (_, chosen), (_, rejected) in combinations(ranked, 2):
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


def measure(program: str, options: argparse.Namespace) -> dict[str, float]:
    """Trains; returns the tokens that go through the model a step, seconds a step, and peak memory."""
    import logging

    logging.disable(logging.WARNING)
    rows, folder = list_rows(options), options.output / "work" / program.replace(" ", "_")
    pairs = pairs_of(rows)
    a_step = options.lists * options.completions * (options.completions - 1) // 2
    if program == "trl":
        trainer = make_trainer("trl", pairs, folder, argparse.Namespace(steps=options.steps, pairs=a_step))
    else:
        trainer = ours(program, rows, make_tokenizer(pairs), folder, options, a_step)
    found = timed(trainer, a_step, options.steps)
    return found | {"seconds_per_step": a_step / found["pairs_per_second"]}


def ours(
    program: str, rows: list[dict[str, Any]], tokenizer: Any, folder: Path, options: argparse.Namespace, pairs: int
) -> Any:
    """Returns our trainer on lists, or on all pairs of them."""
    from alignlab import PreferenceConfig, PreferenceTrainer

    args = PreferenceConfig(
        output_dir=str(folder / "run"),
        score_cache_dir=str(folder / "scores"),
        max_steps=options.steps + WARM_UP,
        per_device_train_batch_size=options.lists if program == "lists" else pairs,
        learning_rate=1e-6,
        logging_steps=1000,
        save_strategy="no",
        disable_tqdm=True,
        lists_as="all",
        layout="padded" if program == "pairs padded" else "packed",
        use_cpu=not _cuda(),
        bf16=False,
        gradient_checkpointing=False,
    )
    loss = "plackett_luce" if program == "lists" else "dpo"
    return PreferenceTrainer(make_model(), args, loss, rows, None, tokenizer)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row a program: medians, and how many times what lists take, paired by repeat, with the range."""
    lists = {row["repeat"]: row for row in results if row["program"] == "lists"}
    summary = []
    for program in PROGRAMS:
        mine = [row for row in results if row["program"] == program]
        found: dict[str, Any] = {"program": program}
        for figure in FIGURES:
            times = [row[figure] / lists[row["repeat"]][figure] for row in mine]
            found[figure] = round(statistics.median(row[figure] for row in mine), 2)
            found[f"{figure}_times_lists"] = round(statistics.median(times), 2)
            found[f"{figure}_range"] = f"{min(times):.2f} to {max(times):.2f}"
        summary.append(found)
    return summary


if __name__ == "__main__":
    main()
