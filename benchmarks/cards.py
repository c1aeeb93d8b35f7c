"""Which cards run what, by the planner: the fewest GPUs of each size for models of 8B to 70B, and with which engine.

    python benchmarks/cards.py

writes docs/results/gpu_cards.csv and the table of docs/gpu.md. One pair a micro-batch of ``max_length`` 2048, half of
it the prompt, DPO with a cached reference, bf16, gradient checkpointing, AdamW. Nothing is loaded; nothing is measured.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = {  # layers, width, feed-forward, heads, vocabulary; eight heads of keys each
    "8B": (32, 4096, 14336, 32, 128256),
    "14B": (48, 5120, 13824, 40, 152064),
    "32B": (64, 5120, 27648, 40, 152064),
    "70B": (80, 8192, 28672, 64, 128256),
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"model": {"dtype": "float32"}},
    "LoRA": {"model": {"dtype": "bfloat16"}, "peft": {"r": 16}},
    "QLoRA": {"model": {"load_in_4bit": True}, "peft": {"r": 16}},
}
SIZES = (24, 48, 80, 141)  # GB of a card
COUNTS = (1, 2, 8, 16)
ENGINES = {"": "", "zero2.json": "ZeRO-2", "zero3.json": "ZeRO-3", "zero3_offload.json": "ZeRO-3, offload"}
BEGIN, END = "<!-- cards: python benchmarks/cards.py -->", "<!-- /cards -->"


def save_architecture(name: str, folder: Path) -> Path:
    """Writes the configuration of a model of the given size; there are no weights."""
    layers, width, ffn, heads, vocabulary = MODELS[name]
    values = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
    }
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    return path


def peaks(model: Path, method: str) -> Iterator[tuple[int, str, float]]:
    """Yields number of GPUs, engine, and bytes of each GPU at its fullest moment: the fewest and simplest first."""
    from alignlab import load_config
    from alignlab.planner.memory import estimate
    from alignlab.planner.micro_batch import Lengths

    options = METHODS[method]
    shared = ["zero3.json", "zero3_offload.json"] if method != "full" else list(ENGINES)[1:]
    for count in COUNTS:
        for deepspeed in shared if count > 1 else [""]:
            values = {
                "loss": {"name": "dpo"},
                "data": {"train": "rows.jsonl"},
                "output_dir": "run",
                "per_device_train_batch_size": 1,
                "gradient_checkpointing": True,
                "bf16": True,
                "max_length": 2048,
                **options,
                "model": {"name_or_path": str(model), **options["model"]},
                **({"deepspeed": deepspeed} if deepspeed else {}),
            }
            peak = estimate(load_config(values), count, Lengths(1024, 1024)).peak
            yield count, ENGINES[deepspeed], peak
            if peak <= min(SIZES) * 1e9:
                return  # nothing needs more


def cells(found: list[tuple[int, str, float]]) -> dict[str, str]:
    """Returns for each size of card the fewest that do, and the least engine with which they do."""
    row = {}
    for size in SIZES:
        fit = next(((count, engine) for count, engine, peak in found if peak <= size * 1e9), None)
        row[f"{size} GB"] = "no" if fit is None else f"{fit[0]} x {fit[1]}" if fit[1] else str(fit[0])
    return row


def main() -> int:
    rows, everything = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = save_architecture(name, Path(folder))
            for method in METHODS:
                found = list(peaks(path, method))
                rows.append({"model": name, "trained": method, **cells(found)})
                print(rows[-1], flush=True)
                for count, engine, peak in found:
                    size = round(peak / 1e9, 1)
                    one = {"model": name, "trained": method, "GPUs": count, "engine": engine, "planned GB": size}
                    everything.append(one)
    with (ROOT / "docs" / "results" / "gpu_cards.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(everything[0]))
        writer.writeheader()
        writer.writerows(everything)
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row[name] for name in columns) + " |" for row in rows]
    page = ROOT / "docs" / "gpu.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text("\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
