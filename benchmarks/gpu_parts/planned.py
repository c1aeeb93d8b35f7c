"""Part planner: what `alignlab plan` says beside what the device's allocator counts, for six configs."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from gpu_parts import common
from gpu_parts.common import Bench, Profile

# What differs from DPO with all weights of the 0.5B shape trained under bf16 autocast, two steps of four pairs.
CASES: dict[str, dict[str, Any]] = {
    "full, bf16 autocast": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"peft": {"r": 16}},
    "4-bit and LoRA": {"peft": {"r": 16}, "model.load_in_4bit": True},
    "live reference, whole distributions": {"loss": {"name": "tdpo"}, "reference": "live"},
    "1.5B, gradient checkpointing": {"shape": "1.5B", "gradient_checkpointing": True},
}
LENGTHS = Profile(256, 512, 2048, pairs=4, accumulation=1)
TINY_LENGTHS = Profile(8, 16, 40, pairs=2, accumulation=1)


def run(bench: Bench) -> list[dict[str, Any]]:
    """Returns a row a config: planned, measured, and their ratio."""
    logging.disable(logging.WARNING)
    rows = []
    for name in bench.wanted(list(CASES)):
        if CASES[name].get("model.load_in_4bit") and importlib.util.find_spec("bitsandbytes") is None:
            print(f"{name}: bitsandbytes is not installed: left out")
        elif bench.time_left(name):
            rows.append(_row(bench, name))
    return rows


def _row(bench: Bench, name: str) -> dict[str, Any]:
    from alignlab import load_config, train

    options, profile = dict(CASES[name]), LENGTHS if bench.gpu else TINY_LENGTHS
    shape = options.pop("shape", "0.5B")
    with tempfile.TemporaryDirectory() as folder, common.emptied(bench.device):
        values = _values(bench, Path(folder), shape, profile, options)
        plan = planned(values, profile)
        with common.emptied(bench.device):
            train(load_config(values))
            measured = common.peak_gb(bench.device)
    parts = {f"{part} GB": f"{size / 1e9:.3g}" for part, size in plan.items() if part not in ("peak", "framework")}
    row = {
        "config": name,
        "shape": shape,
        **parts,
        "planned GB": f"{plan['peak'] / 1e9:.3g}",
        "measured GB": f"{measured:.3g}",
        "planned / measured": round(plan["peak"] / 1e9 / measured, 3),
    }
    common.report(name, row)
    return row


def _values(bench: Bench, folder: Path, shape: str, profile: Profile, options: dict[str, Any]) -> dict[str, Any]:
    """Saves model, tokenizer and rows of equal lengths; returns the config of a run on them."""
    model = common.make_model(common.make_config(shape, tiny=not bench.gpu), bench.device)
    model.save_pretrained(folder / "model")
    del model
    common.make_tokenizer().save_pretrained(folder / "model")
    words = [" ".join(f"w{i % 7}" for i in range(n)) for n in (profile.prompt, profile.completion)]
    pair = {"prompt": words[0], "chosen": " " + words[1], "rejected": " w9" + words[1][2:]}
    write_rows(folder / "rows.jsonl", [{**pair, "prompt": f"w{i} {words[0][3:]}"} for i in range(2 * profile.pairs)])
    model_options = {name.removeprefix("model."): value for name, value in options.items() if name.startswith("model.")}
    return {
        **run_values(bench, folder, "rows", profile),
        "model": {"name_or_path": str(folder / "model"), **model_options},
        "max_steps": 2,
        "per_device_train_batch_size": profile.pairs,
        "gradient_checkpointing": False,
        **{name: value for name, value in options.items() if not name.startswith("model.")},
    }


def run_values(bench: Bench, folder: Path, rows: str, profile: Profile) -> dict[str, Any]:
    """Returns what the configs of measured runs share: DPO in bf16 on ``rows.jsonl`` of a folder, and nothing saved."""
    return {
        "loss": {"name": "dpo"},
        "data": {"train": str(folder / f"{rows}.jsonl")},
        "output_dir": str(folder / f"{rows}-run"),
        "score_cache_dir": str(folder / "scores"),
        "bf16": True,
        "max_length": 2 * profile.longest,
        "save_strategy": "no",
        "report": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not bench.gpu,
    }


def planned(values: dict[str, Any], profile: Profile) -> dict[str, float]:
    """Returns the planner's bytes by what they are for, and their peak, without the allowance for the framework."""
    from alignlab import load_config
    from alignlab.planner.memory import estimate
    from alignlab.planner.micro_batch import Lengths

    device = "cpu" if values.get("use_cpu") else "cuda"
    lengths = Lengths(profile.prompt, profile.completion)
    found = estimate(load_config(values), 1, lengths, framework=0.0, device=device)
    return {**found.gpu, "peak": found.peak}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
