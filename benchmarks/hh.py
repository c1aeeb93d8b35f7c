"""HH-RLHF from nothing: a small model trained on the dialogues, then 60 steps of each loss; held-out margins.

    python benchmarks/hh.py path/to/hh-rlhf-file.jsonl.gz [--losses dpo kto] [--steps 60] [--output runs/hh-bench]

No model is downloaded: tokenizer and decoder (about 1.6M parameters) are made on the spot, so the figures say that
real dialogues go through every room and that margins rise, not how good a chat model comes out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from alignlab import PreferenceConfig, PreferenceTrainer

LOSSES = {"dpo": {"beta": 0.1}, "kto": {"beta": 0.1}, "orpo": {"beta": 1.0}, "tdpo": {"beta": 0.1}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an HH-RLHF file: rows of chosen and rejected dialogues, jsonl(.gz)")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sft-steps", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("runs/hh-bench"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    tokenizer = train_tokenizer(options.file)
    started, report = train(options, tokenizer, "sft", {}, None, options.sft_steps, 2e-3)
    show_accounting(report)
    table = Table(title=f"{options.steps} steps of 8 rows, margins on {options.held_out}+ held-out pairs")
    for column in ("loss", "reference", "margin before", "margin after", "accuracy before", "accuracy after"):
        table.add_column(column)
    for name in options.losses:
        rates = {"orpo": 1e-3}
        run, _ = train(options, tokenizer, name, LOSSES[name], started, options.steps, rates.get(name, 5e-4))
        before, after = run.state.log_history[0], run.evaluate()
        mode = "none"
        for one in run.frozen.values():
            mode = f"{'cached' if one.cached else 'live'}, {one.forwards} forwards"
        figures = [part[f"eval_rewards/{key}"] for key in ("margins", "accuracies") for part in (before, after)]
        table.add_row(name, mode, *(f"{figure:.3f}" for figure in figures))
    Console(width=120).print(table)


def texts(path: Path) -> list[str]:
    """Returns the chosen dialogues of an HH-RLHF file."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line)["chosen"] for line in data.decode("utf-8").split("\n") if line]


def train_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer of 2,048 tokens on the dialogues."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(path), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def new_model() -> torch.nn.Module:
    """Returns a decoder of about 1.6M parameters with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=2048, max_position_embeddings=512, **shape)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def train(
    options: argparse.Namespace,
    tokenizer: Any,
    name: str,
    loss: dict[str, Any],
    start: PreferenceTrainer | None,
    steps: int,
    rate: float,
) -> tuple[PreferenceTrainer, Any]:
    """Trains from the weights of ``start`` (or from nothing); returns the trainer and its report on the data."""
    model = new_model()
    if start is not None:
        model.load_state_dict(start.model.state_dict())
    folder = options.output / name
    args = PreferenceConfig(
        output_dir=str(folder),
        score_cache_dir=str(options.output / "scores"),
        max_steps=steps,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=256,
        truncation_mode="keep_end",
        on_bad_row="skip",
        eval_on_start=True,
        save_strategy="no",
        logging_steps=20,
    )
    held = options.held_out
    trainer = PreferenceTrainer(model, args, {"name": name, **loss}, str(options.file), held, tokenizer)
    trainer.train()
    return trainer, trainer.data.reports["train"]


def show_accounting(report: Any) -> None:
    """Prints where every row of the file went."""
    [source] = report.sources
    print(f"{source.name}: {source.rows_read} rows read, {source.rows_kept} kept, {source.rows_rejected} rejected")
    for bad in report.bad_rows:
        print(f"  {bad}")
    print(f"  truncated: {report.rows_truncated} rows; duplicates: {report.duplicates}")


if __name__ == "__main__":
    main()
