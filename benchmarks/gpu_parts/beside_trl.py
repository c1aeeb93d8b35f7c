"""Part trl: throughput, memory and share of the matrix rate beside TRL's DPOTrainer, in paired repeats.

Both programs train the same random weights on the same rows in bf16, with the reference's scores made before the clock
starts; 0.5B and 1.5B with all weights in float32 under autocast, 8B with LoRA on a bf16 base. TRL pads, and attends by
FlashAttention where its package is there and by SDPA elsewhere. The share of the matrix rate counts the floating-point
operations that a program's own tokens need, without padding and without what is computed twice:

    k (N_layers T + V D C) + 12 D L A,    k = 6 where all weights are trained, 4 with LoRA,

for T tokens of a step (a prompt once with us, twice with TRL), C scored positions and A cells of attention.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts import common
from gpu_parts.common import Bench, Profile

WARM_UP, STEPS = 3, 8
PROGRAMS = ("trl", "alignlab")


@dataclass(frozen=True)
class Cell:
    """One shape under one profile of lengths."""

    shape: str
    lengths: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.shape} {self.lengths}"


def run(bench: Bench, profile: bool = False) -> list[dict[str, Any]]:
    """Measures every shape under every profile; each repeat goes through all of them before the next begins."""
    logging.disable(logging.WARNING)
    shapes = bench.wanted(list(common.SHAPES))
    cells = [Cell(shape, lengths) for shape in shapes for lengths in bench.profiles]
    rate = common.matmul_rate(bench.device)
    print(f"a bf16 matrix product reaches {rate:.0f} TFLOP/s here", flush=True)
    found: dict[tuple[Cell, str], list[dict[str, float]]] = {}
    full: set[tuple[Cell, str]] = set()
    for repeat in range(bench.repeats):
        for cell in cells:
            if not bench.time_left(f"{cell.name}, repeat {repeat + 1}"):
                continue
            for program in PROGRAMS if repeat % 2 == 0 else PROGRAMS[::-1]:
                if (cell, program) in full:
                    continue
                one = _measured(bench, cell, program, profile and repeat == 0)
                if one is None:
                    full.add((cell, program))
                else:
                    found.setdefault((cell, program), []).append(one)
    return [row for cell in cells if (row := _row(cell, found, full, rate))]


def _measured(bench: Bench, cell: Cell, program: str, profile: bool) -> dict[str, float] | None:
    """Returns the figures of one run; None where the device is too small for it."""
    with common.emptied(bench.device), tempfile.TemporaryDirectory() as folder:
        try:
            one = _train(bench, cell, program, Path(folder), profile)
        except Exception as error:
            if not common.out_of_memory(error):
                raise
            print(f"{cell.name} {program}: out of memory", flush=True)
            return None
    common.report(f"{cell.name} {program}", {name: round(value, 3) for name, value in one.items()})
    return one


def _train(bench: Bench, cell: Cell, program: str, folder: Path, profile: bool) -> dict[str, float]:
    """Trains for a few steps; returns pairs a second, peak memory (GB) and needed TFLOP/s after the warm-up."""
    lengths = bench.profiles[cell.lengths]
    pairs = lengths.pairs * lengths.accumulation
    rows = common.make_rows(lengths, pairs * (WARM_UP + STEPS))
    config = common.make_config(cell.shape, tiny=not bench.gpu)
    trainer = (_trl if program == "trl" else _alignlab)(bench, cell, config, rows, _settings(bench, lengths, folder))
    clock = _clock(bench, bench.output / f"gpu_trl_{cell.shape}_{cell.lengths}_{program}.txt" if profile else None)
    trainer.add_callback(clock)
    trainer.train()
    seconds = clock.seconds
    timed = common.lengths(lengths, pairs * (WARM_UP + STEPS))
    needed = _needed(config, timed, repeated=program == "trl", trained=cell.shape != "8B") * STEPS / (WARM_UP + STEPS)
    return {
        "pairs_per_second": pairs * STEPS / seconds,
        "peak_gb": common.peak_gb(bench.device),
        "tflops": needed / seconds / 1e12,
    }


def _settings(bench: Bench, lengths: Profile, folder: Path) -> dict[str, Any]:
    """Returns what both programs are told."""
    return {
        "output_dir": str(folder / "run"),
        "max_steps": WARM_UP + STEPS,
        "per_device_train_batch_size": lengths.pairs,
        "gradient_accumulation_steps": lengths.accumulation,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": True,
        "gradient_checkpointing": lengths.checkpointing,
        "use_cpu": not bench.gpu,
        "optim": "adamw_torch_fused" if bench.gpu else "adamw_torch",
        "max_length": 2 * lengths.longest,
        "dataloader_pin_memory": bench.gpu,
    }


def _model(bench: Bench, cell: Cell, config: Any, **options: Any) -> tuple[Any, Any]:
    """Returns the model, and the adapter's configuration for the largest shape."""
    import torch

    if cell.shape != "8B":
        return common.make_model(config, bench.device, **options), None
    from peft import LoraConfig

    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return common.make_model(config, bench.device, torch.bfloat16, **options), adapter


def _alignlab(bench: Bench, cell: Cell, config: Any, rows: list[Any], settings: dict[str, Any]) -> Any:
    from alignlab import PreferenceConfig, PreferenceTrainer

    model, adapter = _model(bench, cell, config)
    args = PreferenceConfig(**settings, score_cache_dir=str(Path(settings["output_dir"]).parent / "scores"))
    return PreferenceTrainer(model, args, "dpo", rows, None, common.make_tokenizer(), peft_config=adapter)


def _trl(bench: Bench, cell: Cell, config: Any, rows: list[Any], settings: dict[str, Any]) -> Any:
    import importlib.util

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    flash = bench.gpu and importlib.util.find_spec("flash_attn") is not None
    model, adapter = _model(bench, cell, config, attn_implementation="flash_attention_2" if flash else "sdpa")
    args = DPOConfig(
        **settings,
        precompute_ref_log_probs=True,
        use_liger_kernel=bench.gpu and importlib.util.find_spec("liger_kernel") is not None,
    )
    data = Dataset.from_list(rows)
    return DPOTrainer(
        model, args=args, train_dataset=data, processing_class=common.make_tokenizer(), peft_config=adapter
    )


def _clock(bench: Bench, profile: Path | None) -> Any:
    """Returns a callback whose ``seconds`` are those of the steps after the warm-up; the last two may be profiled."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        start, seconds, profiler = 0.0, float("nan"), None

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                common.synchronise(bench.device)
                self.start = time.perf_counter()
            if profile is not None and state.global_step == WARM_UP + STEPS - 2:
                self.profiler = torch.profiler.profile()
                self.profiler.start()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            common.synchronise(bench.device)
            self.seconds = time.perf_counter() - self.start
            if self.profiler is not None:
                self.profiler.stop()
                profile.parent.mkdir(parents=True, exist_ok=True)
                by = "device_time_total" if bench.gpu else "cpu_time_total"
                profile.write_text(self.profiler.key_averages().table(sort_by=f"self_{by}", row_limit=25))

    return Clock()


# ---- what is needed, and the table -----------------------------------------------------------------------------------


def _needed(config: Any, timed: list[tuple[int, int, int]], *, repeated: bool, trained: bool) -> float:
    """Returns the floating-point operations that rows of these lengths need; see the module."""
    width, layers = config.hidden_size, config.num_hidden_layers
    head = width // config.num_attention_heads
    attention = 2 * width * width + 2 * width * head * config.num_key_value_heads
    weights = layers * (attention + 3 * width * config.intermediate_size)
    factor, operations = 6 if trained else 4, 0.0
    for prompt, *completions in timed:
        tokens = sum(completions) + prompt * (2 if repeated else 1)
        cells = sum(_causal(prompt + one) for one in completions) - (0 if repeated else _causal(prompt))
        operations += factor * (weights * tokens + config.vocab_size * width * sum(completions))
        operations += 12 * width * layers * cells
    return operations


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _row(cell: Cell, found: dict[Any, list[dict[str, float]]], full: set[Any], rate: float) -> dict[str, Any] | None:
    """Returns a line of the table: medians of each program, and the paired ratios with their range."""
    if not any((cell, program) in found or (cell, program) in full for program in PROGRAMS):
        return None
    row: dict[str, Any] = {"shape": cell.shape, "lengths": cell.lengths, "repeats": 0}
    for program in PROGRAMS:
        runs = found.get((cell, program), [])
        row["repeats"] = max(row["repeats"], len(runs))
        for key, digits in (("pairs_per_second", 2), ("peak_gb", 2)):
            value = round(statistics.median(one[key] for one in runs), digits) if runs else "out of memory"
            row[f"{program} {key}"] = value
        share = statistics.median(one["tflops"] for one in runs) / rate if runs else float("nan")
        row[f"{program} share of matrix rate"] = round(share, 3)
    both = list(zip(*(found.get((cell, program), []) for program in ("alignlab", "trl")), strict=False))
    for key in ("pairs_per_second", "peak_gb"):
        ratios: Iterator[float] = (ours[key] / theirs[key] for ours, theirs in both)
        found_ratios = sorted(ratios)
        if found_ratios:
            row[f"{key} ratio"] = round(statistics.median(found_ratios), 2)
            row[f"{key} range"] = f"{found_ratios[0]:.2f} to {found_ratios[-1]:.2f}"
    return row
