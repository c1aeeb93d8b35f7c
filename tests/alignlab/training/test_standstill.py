"""Runs in which no weight can change: refused by name, or said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from making import make_model, make_rows
from peft import LoraConfig, get_peft_model

from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def trainer(tokenizer: Any, folder: Path, model: Any = None, rows: Any = None, **options: Any) -> PreferenceTrainer:
    settings: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True, **options}
    args = PreferenceConfig(output_dir=str(folder), **settings)
    return PreferenceTrainer(model or make_model(), args, "simpo", rows or make_rows(8), None, tokenizer)


def test_a_frozen_model_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    frozen = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"model: no weight of it is trainable .* nothing would be learned"):
        trainer(tokenizer, tmp_path, frozen).train()


def test_a_frozen_adapter_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    frozen = get_peft_model(make_model(), LORA).requires_grad_(False)
    with pytest.raises(ValueError, match=r"model: no weight of it is trainable .*is_trainable=True"):
        trainer(tokenizer, tmp_path, frozen).train()


def test_an_adapter_that_is_scaled_away_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=0, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"^peft.lora_alpha: it is 0 \(adapter default\), .* nothing would be learned"):
        trainer(tokenizer, tmp_path, get_peft_model(make_model(), config)).train()


def test_no_step_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no step would be taken: num_train_epochs is 0, max_steps -1"):
        trainer(tokenizer, tmp_path, max_steps=-1, num_train_epochs=0).train()
    with pytest.raises(ValueError, match="max_steps: expected -1, for as many as num_train_epochs says, or at least 1"):
        trainer(tokenizer, tmp_path, max_steps=0)


def test_rows_that_weigh_nothing_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row | {"weight": 0.0} for row in make_rows(8)]
    with pytest.raises(ValueError, match="weight: it is 0 in all 8 training rows, so nothing would be learned"):
        trainer(tokenizer, tmp_path, rows=rows).train()
    trainer(tokenizer, tmp_path, rows=[rows[0] | {"weight": 1.0}, *rows[1:]]).train()


def test_a_learning_rate_of_0_is_said(tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "alignlab.training.standstill"):
        trainer(tokenizer, tmp_path, learning_rate=0.0).train()
    assert "learning_rate: it is 0, so no weight changes" in caplog.messages


def test_weights_of_a_sum_that_are_all_0_are_refused() -> None:
    from alignlab import losses

    with pytest.raises(ValueError, match=r"loss\.weights are all 0: nothing would be learned"):
        losses.build({"name": "weighted_sum", "weights": [0.0, 0.0]})
