"""Runs the seven losses one after the other as ``alignlab train`` does; as a script, on the ranks of a launcher."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from making import make_model, make_rows, make_tokenizer
from making_lists import make_lists
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from alignlab import losses
from alignlab.cli.launched import leave
from alignlab.config.run import load_config
from alignlab.run.single import train
from alignlab.scoring import forward as scoring

LOSSES = ("dpo", "ipo", "kto", "orpo", "tdpo", "modpo", "group_robust")
STEPS, ROWS, EVAL_ROWS, STEP_ROWS = 20, 21, 5, 4  # 21 = 5 * 4 + 1: in the last step of an epoch one rank has no row


def prepare(folder: Path) -> None:
    """Writes model, tokenizer and rows that every run starts from; a fifth of the rows is of the group "few"."""
    make_model(0, hidden_size=64, intermediate_size=128).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    make_experts(folder / "experts")
    for name, count, seed in (("train", ROWS, 0), ("eval", EVAL_ROWS, 1)):
        pairs, labelled = make_rows(count, seed), []
        for index, row in enumerate(pairs):
            row["group"] = "few" if index % 5 == 0 else "many"
            row["rewards_chosen"], row["rewards_rejected"] = [math.sin(index)], [math.cos(index)]
            good = index % 3 > 0
            text = row["chosen"] if good else row["rejected"]
            labelled.append({"prompt": row["prompt"], "completion": text, "label": good})
        lists = make_lists(count, seed, groups=("few", "many", "many"))
        for kind, rows in (("pairs", pairs), ("labelled", labelled), ("lists", lists)):
            (folder / f"{name}_{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_experts(folder: Path) -> None:
    """Writes a small mixture of experts, with the same tokenizer."""
    plain = make_model().config
    names = ["vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"]
    names += ["pad_token_id", "bos_token_id", "eos_token_id"]
    shape = {name: getattr(plain, name) for name in names} | {"num_hidden_layers": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**shape, **experts, intermediate_size=64))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def settings(folder: Path, run: Path, loss: str, **changes: Any) -> dict[str, Any]:
    """Returns the config of one run: a high learning rate, so that twenty steps go somewhere."""
    ranks, accumulation = int(os.environ.get("WORLD_SIZE", "1")), changes.get("gradient_accumulation_steps", 1)
    kind, model = losses.describe(loss).needs.data, changes.pop("model", {})
    return {
        "loss": {"name": loss},
        "model": {**model, "name_or_path": str(folder / model.get("name_or_path", "model"))},
        "data": {"train": str(folder / f"train_{kind}.jsonl"), "eval": str(folder / f"eval_{kind}.jsonl")},
        "output_dir": str(run),
        "score_cache_dir": str(run.parent / "scores"),
        "max_steps": STEPS,
        "per_device_train_batch_size": STEP_ROWS // ranks // accumulation,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report": False,
        **changes,
    }


def main(folder: Path, out: Path, runs: list[dict[str, Any]]) -> None:
    """Trains one run after the other on this launcher's ranks; with ``chunked`` the LM head always runs in chunks."""
    gc.freeze()  # the Trainer collects garbage in every run
    for changes in runs:
        loss = changes.pop("of")
        chunked = patch.object(scoring, "worthwhile", return_value=True) if changes.pop("chunked", False) else None
        with chunked or nullcontext():
            train(load_config(settings(folder, out / changes.pop("name", loss), loss, **changes)))
    raise SystemExit(leave(0))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), Path(words[1]), json.loads(words[2]))
