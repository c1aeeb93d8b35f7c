"""Part qlora: a 4-bit model of 8B with LoRA, loaded as users load it and trained for a few steps."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpu_parts import common
from gpu_parts.common import Bench

WARM_UP, STEPS = 2, 6


def run(bench: Bench) -> list[dict[str, Any]]:
    """Saves a random model of the 8B shape, loads it in 4 bits, trains, saves; returns one row a profile."""
    if importlib.util.find_spec("bitsandbytes") is None:
        print("qlora: bitsandbytes is not installed: left out")
        return []
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        model = common.make_model(common.make_config("8B", tiny=not bench.gpu), bench.device, torch.bfloat16)
        model.save_pretrained(folder / "model")
        common.make_tokenizer().save_pretrained(folder / "model")
        del model
        print(f"model saved after {time.perf_counter() - start:.0f} s", flush=True)
        for lengths in bench.wanted(list(bench.profiles)):
            if bench.time_left(f"qlora {lengths}"):
                rows.append(_row(bench, folder, lengths))
    return rows


def _row(bench: Bench, folder: Path, name: str) -> dict[str, Any]:
    """Trains one profile of lengths; returns its seconds, memory, and what the planner said."""
    from gpu_parts.planned import planned, run_values, write_rows

    profile = bench.profiles[name]
    pairs = profile.pairs * profile.accumulation
    write_rows(folder / f"{name}.jsonl", common.make_rows(profile, pairs * (WARM_UP + STEPS)))
    values = {
        **run_values(bench, folder, name, profile),
        "model": {"name_or_path": str(folder / "model"), "load_in_4bit": True},
        "peft": {"r": 16},
        "max_steps": WARM_UP + STEPS,
        "per_device_train_batch_size": profile.pairs,
        "gradient_accumulation_steps": profile.accumulation,
        "gradient_checkpointing": True,
    }
    row: dict[str, Any] = {"lengths": name, "pairs a step": pairs}
    with common.emptied(bench.device):
        try:
            loaded, seconds = _train(bench, values)
        except Exception as error:
            if not common.out_of_memory(error):
                raise
            return {**row, "pairs a second": "out of memory"}
        row |= {
            "seconds to the first step": round(loaded, 1),
            "pairs a second": round(pairs * STEPS / seconds, 2),
            "peak GB": round(common.peak_gb(bench.device), 2),
            "planned GB": round(planned(values, profile)["peak"] / 1e9, 2),
        }
    common.report(f"qlora {name}", row)
    return row


def _train(bench: Bench, values: dict[str, Any]) -> tuple[float, float]:
    """Runs a config as ``alignlab train`` does; returns seconds until the first step, and of the steps timed."""
    from transformers import TrainerCallback

    from alignlab import PreferenceTrainer, load_config, train

    begun, marks = time.perf_counter(), {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (0, WARM_UP):
                common.synchronise(bench.device)
                marks[state.global_step] = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            common.synchronise(bench.device)
            marks["end"] = time.perf_counter()

    before = PreferenceTrainer.train

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(Clock())
        return before(self, *args, **kwargs)

    PreferenceTrainer.train = timed  # type: ignore[method-assign]
    try:
        train(load_config(values))
    finally:
        PreferenceTrainer.train = before  # type: ignore[method-assign]
    return marks[0] - begun, marks["end"] - marks[WARM_UP]
