"""Runs of the trainer on the pretend accelerator, and on the CPU for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pretend
import pytest
import zoo_ranks
from pretend import DEVICE
from transformers import PrinterCallback

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer


class Runs:
    """Makes trainers over one tiny model; sets are tokenised once for each kind of needs."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        self.sets: dict[Any, Any] = {}
        zoo_ranks.save_scorer(folder)

    def trainer(self, loss: str | Mapping[str, Any], model: Any = None, **options: Any) -> PreferenceTrainer:
        """Returns a trainer of two steps, with an evaluation set."""
        built = losses.build(loss)
        extra = {name: options.pop(name) for name in ("peft_config", "ref_model") if name in options}
        chosen = options.pop("rows", None)
        args = PreferenceConfig(
            **{
                "output_dir": str(self.folder / "run"),
                "score_cache_dir": str(self.folder / "scores"),
                "scorers": {name: str(self.folder / "scorer") for name in built.needs.scorers} or None,
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 2e-3,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "optim": "adamw_torch",
                "online_max_new_tokens": 8,
                **options,
            }
        )
        rows = chosen or self.sets.get(built.needs) or zoo_ranks.rows_for(built.needs)
        made = PreferenceTrainer(
            zoo_ranks.tiny(0, built.needs.values) if model is None else model,
            args,
            built,
            rows,
            rows,
            self.tokenizer,
            **extra,
        )
        made.remove_callback(PrinterCallback)
        self.sets[built.needs] = made.data.train
        return made


def figures(run: PreferenceTrainer) -> dict[str, Any]:
    """Trains and evaluates; returns the losses of the steps and the figures of the evaluation, times left out."""
    run.train()
    steps = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
    return {"losses": steps, **{name: value for name, value in run.evaluate().items() if name not in timed}}


def on_the_device(
    make: Callable[[], PreferenceTrainer], *contexts: AbstractContextManager[Any]
) -> tuple[PreferenceTrainer, dict[str, Any]]:
    """Makes a trainer on the pretend device, trains and evaluates it there; returns it and its figures."""
    with ExitStack() as stack:
        for context in (pretend.accelerator(), *contexts):
            stack.enter_context(context)
        run = make()
        found = figures(run)
        assert run.args.device == DEVICE
        assert {weight.device for weight in run.model.parameters()} == {DEVICE}
        return run, found


def close(expected: Mapping[str, Any]) -> Any:
    """Within float32's rounding; sums of squares in the 100000s are held to 1e-6 of their size."""
    return {name: pytest.approx(value, abs=2e-4, rel=1e-5) for name, value in expected.items()}


def lora() -> Any:
    """Returns a small new adapter."""
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
