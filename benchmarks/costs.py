"""What alignlab's own parts cost: a step of each loss, vocabulary, length, batch, precision; reference pass, start-up.

    make bench                                             # after the comparison with TRL
    python benchmarks/costs.py --cases losses vocabulary   # some of it

Every figure is from a process of its own on the model and rows of ``workloads.py``; a ratio is to the baseline case of
its table, paired repeat by repeat, because a shared machine drifts. ``matmul_share`` is what the trained FLOPs
(of linear layers and head, three times the forward's) took of the rate at which this process multiplies two 2048 x 2048
fp32 matrices.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
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
    synchronise,
    tell,
    timed,
    write_csv,
)

BASE: dict[str, Any] = {"loss": "dpo", "vocabulary": 8192, "profile": "hh_like", "pairs": 8}
LOSSES = ("dpo", "ipo", "kto", "orpo", "tdpo", "modpo", "group_robust", "sft", "simpo")
TABLES: dict[str, list[dict[str, Any]]] = {  # the first case of each is its baseline
    "losses": [{"loss": name} for name in LOSSES],
    "losses_32k": [{"loss": name, "vocabulary": 32768} for name in ("dpo", "tdpo")],
    "vocabulary": [{"vocabulary": size} for size in (8192, 32768, 131072)],
    "length": [{"profile": name} for name in ("hh_like", "capybara", "ultrafeedback", "tldr")],
    "batch": [{"pairs": pairs} for pairs in (8, 2, 4, 16, 32)],
    "precision": [{}, {"float32_matmul_precision": "medium"}, {"bf16": True}],
    "layout": [{"layout": "packed"}, {"layout": "padded"}, {"layout": "padded", "length_window": 8}],
    "checkpointing": [{}, {"gradient_checkpointing": True}],
    "start": [{"measure": "start"}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--profile", action="store_true", help="print where a DPO step's time goes, and nothing else")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.profile:
        profile(options)
        return
    if options.worker:
        tell(measure({**BASE, **json.loads(options.worker)}, options))
        return
    rows = []
    for table in options.cases:
        repeats = [[run_worker(case) for case in TABLES[table]] for _ in range(options.repeats)]
        rows += summarise(table, repeats)
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(options.output / "costs.csv", [{**row, **machine()} for row in rows])
    show(rows)


def run_worker(case: dict[str, Any]) -> dict[str, float]:
    """Measures a case in a process of its own; one before it has filled the score cache."""
    for _ in range(1 if "measure" in case else 2):
        result = apart(json.dumps(case))
        if result.pop("was_cached"):
            break
    print(case, {name: round(value, 3) for name, value in result.items()}, flush=True)
    return result


# ---- one measurement ---------------------------------------------------------------------------------------------


def measure(case: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Trains a case for a few steps, or measures the start of a run."""
    import logging

    logging.disable(logging.WARNING)
    if case.get("measure") == "start":
        return {**start(case, options), "was_cached": True}
    began = time.perf_counter()
    trainer = make_trainer(case, options)
    seconds = time.perf_counter() - began
    if not is_cached(options, case):
        return {"was_cached": False}
    result = timed(trainer, case["pairs"], options.steps)
    rate = matmul_rate()
    flops = trained_flops(trainer, result["tokens_per_step"], case) * result["pairs_per_second"] / case["pairs"]
    return {
        "step_milliseconds": 1000 * case["pairs"] / result["pairs_per_second"],
        **result,
        "trainer_made_seconds": seconds,
        "matmul_gigaflops": rate / 1e9,
        "matmul_share": flops / rate,
        "was_cached": True,
    }


def folder_of(case: dict[str, Any], options: argparse.Namespace) -> Path:
    """Returns where a case keeps its scores."""
    name = "-".join(str(case.get(key)) for key in ("loss", "vocabulary", "profile", "pairs", "bf16", "layout"))
    return options.output / "work" / "costs" / name


def is_cached(options: argparse.Namespace, case: dict[str, Any]) -> bool:
    """True if an earlier process filled the score cache: its pass would be part of the peak otherwise."""
    mark = folder_of(case, options) / "cached"
    if mark.exists():
        return True
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return False


def make_trainer(case: dict[str, Any], options: argparse.Namespace) -> Any:
    """Returns a trainer of the case, with its reference scores made."""
    import torch

    from alignlab import PreferenceConfig, PreferenceTrainer

    count = case["pairs"] * (options.steps + WARM_UP)
    plain = plain_rows(case, count)
    rows = with_columns(plain, case["loss"])
    extra = {
        key: value
        for key, value in case.items()
        if key in ("bf16", "layout", "length_window", "gradient_checkpointing", "float32_matmul_precision")
    }
    folder = folder_of(case, options)
    args = PreferenceConfig(
        output_dir=str(folder / "run"),
        max_steps=options.steps + WARM_UP,
        per_device_train_batch_size=case["pairs"],
        learning_rate=1e-6,
        logging_steps=1000,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        reference="cached" if case["loss"] == "tdpo" else "auto",
        score_cache_dir=str(folder / "scores"),
        **extra,
    )
    loss: dict[str, Any] = {"name": case["loss"]}
    if case["loss"] == "group_robust":
        loss["base"] = {"name": "dpo"}
    if case["loss"] == "modpo":
        loss["weights"] = [0.5, 0.5]
    return PreferenceTrainer(make_model(case["vocabulary"]), args, loss, rows, None, make_tokenizer(plain))


def plain_rows(case: dict[str, Any], count: int) -> list[dict[str, str]]:
    """Returns the case's pairs, in random order."""
    rows = profile_rows(*PROFILES[case["profile"]])
    random.Random(0).shuffle(rows)
    return rows[:count]


def with_columns(rows: list[dict[str, str]], loss: str) -> list[dict[str, Any]]:
    """Returns the rows with what the loss draws on besides."""
    if loss == "group_robust":
        return [{**row, "group": "ab"[index % 2]} for index, row in enumerate(rows)]
    if loss == "modpo":
        return [{**row, "rewards_chosen": [0.5], "rewards_rejected": [0.1]} for row in rows]
    return list(rows)


def start(case: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Makes the same trainer over 400 rows twice: the first scores the reference, the second reads the cache."""
    import shutil

    folder = folder_of({**case, "profile": "start"}, options)
    shutil.rmtree(folder, ignore_errors=True)
    found, tokens = {}, 0
    for name in ("cold", "warm"):
        began = time.perf_counter()
        trainer = make_trainer({**case, "pairs": 400 // (options.steps + WARM_UP), "profile": "hh_like"}, options)
        found[f"{name}_start_seconds"] = time.perf_counter() - began
        lengths = trainer.data.train.with_format("numpy")
        tokens = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in lengths)
    scoring = found["cold_start_seconds"] - found["warm_start_seconds"]
    return {**found, "rows": len(lengths), "reference_tokens_per_second": tokens / scoring}


def trained_flops(trainer: Any, tokens: float, case: dict[str, Any]) -> float:
    """Returns the multiply-adds times two of forward and backward of a step's linear layers and head.

    6 per weight and token; the head only where a needed token is predicted. Attention's own products are left out.
    """
    model = trainer.model
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head - model.get_input_embeddings().weight.numel()
    batch = next(iter(trainer.get_train_dataloader()))
    predicted = len(batch["completions"]["predict"]) / batch["completions"]["shares"].gt(0).sum().item()
    return 6 * tokens * (body + head * predicted)


GROUPS = {  # operators whose own time is shown together
    "linear layers and head": ("mm", "addmm", "bmm", "linear", "matmul"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "optimiser": ("fused_adam", "_foreach", "adam"),
    "norms, activations, additions": (
        "mul",
        "add",
        "silu",
        "rsqrt",
        "pow",
        "mean",
        "neg",
        "sub",
        "div",
        "sum",
        "native",
    ),
    "copies": ("copy", "cat", "clone", "index", "embedding", "fill", "zero", "slice", "contiguous", "empty"),
    "softmax, logarithms": ("exp", "log", "softmax", "where", "amax", "max"),
}


def profile(options: argparse.Namespace) -> None:
    """Prints the shares of a DPO step's processor time by groups of operators, after the warm-up."""
    import logging

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled
    from transformers import TrainerCallback

    logging.disable(logging.WARNING)
    trainer = make_trainer(BASE, options)
    watch = profiled(activities=[ProfilerActivity.CPU])

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                watch.start()

    trainer.add_callback(Watch())
    trainer.train()
    watch.stop()
    shares: dict[str, float] = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in watch.key_averages():
        name = event.key.removeprefix("aten::")
        group = next((group for group, words in GROUPS.items() if name.lstrip("_").startswith(words)), "other")
        shares[group] += event.self_cpu_time_total
    whole = sum(shares.values())
    for group, part in shares.items():
        print(f"{group:32} {part / whole:6.1%}")
    print(watch.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=50))


def matmul_rate() -> float:
    """Returns the FLOPs a second at which this process multiplies two 2048 x 2048 fp32 matrices (best of five)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    left, right = torch.randn(2, 2048, 2048, device=device)
    best = float("inf")
    for _ in range(6):
        synchronise()
        began = time.perf_counter()
        left @ right
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


# ---- results -----------------------------------------------------------------------------------------------------


def summarise(table: str, repeats: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Returns a row a case: medians, and the ratios of step time and peak memory to the table's first case."""
    rows = []
    for index, case in enumerate(TABLES[table]):
        mine = [repeat[index] for repeat in repeats]
        row: dict[str, Any] = {"table": table, "case": " ".join(f"{key}={value}" for key, value in case.items())}
        row |= {name: round(statistics.median(one[name] for one in mine), 3) for name in COLUMNS if name in mine[0]}
        for name in ("step_milliseconds", "peak_megabytes"):
            if name in mine[0]:
                ratios = [one[name] / repeat[0][name] for one, repeat in zip(mine, repeats, strict=True)]
                row[f"{name}_ratio"] = round(statistics.median(ratios), 3)
                row[f"{name}_ratio_range"] = f"{min(ratios):.3f}-{max(ratios):.3f}"
        rows.append({**dict.fromkeys(ALL_COLUMNS, ""), **row})
    return rows


COLUMNS = (
    *("step_milliseconds", "pairs_per_second", "tokens_per_step", "peak_megabytes", "trainer_made_seconds"),
    *("matmul_gigaflops", "matmul_share", "threads"),
    *("cold_start_seconds", "warm_start_seconds", "rows", "reference_tokens_per_second"),
)
RATIOS = tuple(
    f"{name}_{kind}" for name in ("step_milliseconds", "peak_megabytes") for kind in ("ratio", "ratio_range")
)
ALL_COLUMNS = ("table", "case", *COLUMNS, *RATIOS)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    from rich.console import Console
    from rich.table import Table

    columns = ("table", "case", "step_milliseconds", "peak_megabytes", "matmul_share", *RATIOS)
    table = Table(title="medians; ratios to the first case of each table (range over repeats)")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*[str(row[column]) for column in columns])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
