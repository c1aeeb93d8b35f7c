"""Runs losses of the zoo for ten steps through the real trainer; as a script, on the ranks of a launcher."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from making import make_model, make_rows, make_tokenizer
from making_lists import make_lists
from transformers import PreTrainedModel

from alignlab import losses
from alignlab.config.arguments import PreferenceConfig
from alignlab.losses import Loss, Needs
from alignlab.training.trainer import PreferenceTrainer

STEPS, ROWS, STEP_ROWS = 10, 14, 4  # labelled losses get 28 rows; the last step of an epoch has two rows
FORMS: dict[str, Mapping[str, Any]] = {  # forms of a loss that draw on other parts of the trainer than its defaults
    "aot unpaired": {"name": "aot", "paired": False},
    "beta_dpo filter": {"name": "beta_dpo", "filter_ratio": 0.3},
    "bradley_terry all": {"name": "bradley_terry", "margin": True, "centring": 0.01, "label_smoothing": 0.1},
    "cpo example": {"name": "cpo", "nll_reduction": "example"},
    "dpo robust": {"name": "dpo", "smoothing": "robust", "label_smoothing": 0.2},
    "group_robust bradley_terry": {"name": "group_robust", "base": "bradley_terry", "step_size": 0.5},
    "group_robust kto importance": {"name": "group_robust", "base": "kto", "weighting": "importance"},
    "group_robust kto micro_batch": {"name": "group_robust", "base": "kto", "update_order": "micro_batch"},
    "group_robust tdpo": {"name": "group_robust", "base": "tdpo", "step_size": 0.5},
    "hypo simpo": {"name": "hypo", "weight": 0.05, "base": "simpo"},
    "modpo two rewards": {"name": "modpo", "weights": [0.5, 0.3, 0.2]},
    "modpo scorer": {"name": "modpo", "weights": [0.5, 0.3, 0.2], "scorers": ["helpful"]},
    "orpo full": {"name": "orpo", "nll_scope": "full"},
    "reward_regression three": {"name": "reward_regression", "outputs": 3, "distance": "huber"},
    "rpo token": {"name": "rpo", "nll_reduction": "token"},
    "sft labelled": {"name": "sft", "data": "labelled"},
    "slic_hf gold": {"name": "slic_hf", "target": "gold", "nll_reduction": "token"},
    "sppo hard": {"name": "sppo", "probabilities": "hard"},
    "tpo length_normalised": {"name": "tpo", "length_normalised": True},
    "weighted_sum labelled": {"name": "weighted_sum", "parts": ["kto", {"name": "sft", "data": "labelled"}, "bco"]},
    "weighted_sum gold": {"name": "weighted_sum", "parts": ["modpo", "tpo", {"name": "orpo", "nll_scope": "full"}]},
    "weighted_sum pairs": {"name": "weighted_sum", "parts": ["tdpo", {"name": "orpo", "nll_scope": "full"}, "wpo"]},
}
CASES: dict[str, Mapping[str, Any]] = {**{name: {"name": name} for name in losses.names()}, **FORMS}


def rows_for(needs: Needs) -> list[dict[str, Any]]:
    """Returns pairs, or lists, with all that a loss declares and nothing else; labelled losses get pairs split."""
    rows: list[dict[str, Any]] = make_lists(ROWS) if needs.data == "lists" else make_rows(ROWS)
    for index, row in enumerate(rows):
        share = (index % 5) / 10
        known = {
            "group": "many" if index % 3 else "few",
            "margin": share,
            "score_chosen": 0.5 + share,
            "score_rejected": 0.4 - share / 2,
        }
        row |= {name: known[name] for name in needs.columns}
        if needs.gold:
            row["gold"] = f" best {row['chosen']}"
        if needs.rewards:
            row["rewards_chosen"] = [math.sin(index + j) for j in range(needs.rewards)]
            row["rewards_rejected"] = [math.cos(index + j) for j in range(needs.rewards)]
    return rows


def trainer(tokenizer: Any, folder: Path, loss: Loss, train: Any = None, **options: Any) -> PreferenceTrainer:
    """Returns a trainer over a tiny model, with a high learning rate, so that ten steps go somewhere."""
    args = PreferenceConfig(
        **{
            "output_dir": str(folder / "run"),
            "score_cache_dir": str(folder / "scores"),
            "scorers": {name: str(folder / "scorer") for name in loss.needs.scorers} or None,
            "max_steps": STEPS,
            "per_device_train_batch_size": STEP_ROWS // int(os.environ.get("WORLD_SIZE", "1")),
            "online_max_new_tokens": 8,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        }
    )
    model = tiny(0, loss.needs.values)
    return PreferenceTrainer(model, args, loss, rows_for(loss.needs) if train is None else train, None, tokenizer)


def tiny(seed: int, outputs: int = 0) -> PreTrainedModel:
    """Returns a model small enough for hundreds of runs; with ``outputs`` a reward model of so many."""
    model: PreTrainedModel = make_model(
        seed, outputs, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    return model


def save_scorer(folder: Path) -> None:
    """Saves the frozen model that losses with ``scorers`` draw on."""
    tiny(1).save_pretrained(folder / "scorer")


def trajectory(run: PreferenceTrainer) -> list[float]:
    """Trains, and returns the loss of every step."""
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def main(folder: Path) -> None:
    """Runs every case on this launcher's ranks and writes the losses of all steps."""
    tokenizer = make_tokenizer()
    found = {}
    gc.freeze()  # the Trainer collects garbage in every run
    for case, spec in CASES.items():
        run = trainer(tokenizer, folder, losses.build(spec))
        found[case] = {"ranks": run.args.world_size, "losses": trajectory(run)}
        if run.is_world_process_zero():
            (folder / "ranks.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # Gloo's threads can outlive the interpreter and abort a process whose work is done


if __name__ == "__main__":
    main(Path(sys.argv[1]))
