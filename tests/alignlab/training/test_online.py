"""Answers drawn in the step: seeded by run, step and row, the same in any cut and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows

from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer
from alignlab.training.online import seed_of

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def trainer(folder: Path, tokenizer: Any, **options: Any) -> PreferenceTrainer:
    args = PreferenceConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "online_max_new_tokens": 40,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        }
    )
    loss = {"name": "hypo", "weight": 0.01}
    rows = make_rows(8)
    return PreferenceTrainer(make_model(0, **SMALL), args, loss, rows, rows[:4], tokenizer)


def log_of(run: PreferenceTrainer) -> list[dict[str, float]]:
    names = ("loss", "online/kl", "online/tokens", "online/finished", "rewards/margins")
    return [{name: entry[name] for name in names} for entry in run.state.log_history if "loss" in entry]


def test_any_cut_of_a_step_draws_the_same_answers(tokenizer: Any, tmp_path: Path) -> None:
    """Four pairs at once, and one by one: the same losses, estimates of the KL, and lengths."""
    whole, cut = (
        trainer(
            tmp_path / str(size), tokenizer, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size
        )
        for size in (4, 1)
    )
    assert whole.frozen["reference"].cached is False
    for run in (whole, cut):
        run.train()
    for one, other in zip(log_of(whole), log_of(cut), strict=True):
        assert other == pytest.approx(one, abs=2e-5)
    assert log_of(whole)[0]["online/kl"] == pytest.approx(0, abs=1e-5), "policy == reference before the first step"
    assert abs(log_of(whole)[-1]["online/kl"]) > 1e-3
    assert 20 < log_of(whole)[0]["online/tokens"] <= 40, "longer than any answer of the pairs"
    metrics = whole.evaluate(), whole.evaluate()
    assert metrics[0]["eval_online/kl"] == metrics[1]["eval_online/kl"], "each evaluation draws the same luck"


def test_a_resumed_run_draws_what_it_would_have_drawn(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", tokenizer, save_strategy="steps", save_steps=1)
    whole.train()
    other = trainer(tmp_path / "other", tokenizer, save_strategy="steps", save_steps=1)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, other.model.get_parameter(name)), name


def test_seeds_differ_by_run_step_and_row() -> None:
    seeds = {seed_of(run, step, row) for run in (0, 1) for step in (-1, 0, 1) for row in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_answers_that_would_outgrow_the_model_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    """An IndexError in some step of a model with learned positions, and nothing at all with rotary ones."""
    longest = max(len(tokenizer(str(row["prompt"]))["input_ids"]) for row in make_rows(8))
    assert trainer(tmp_path, tokenizer, online_max_new_tokens=256 - longest)
    with pytest.raises(
        ValueError, match=rf"online_max_new_tokens: .* {longest} tokens .* at most {256 - longest}, found"
    ):
        trainer(tmp_path, tokenizer, online_max_new_tokens=257 - longest)


def test_refusals(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference: cached cannot hold answers that the policy has yet to draw"):
        trainer(tmp_path, tokenizer, reference="cached")
    with pytest.raises(ValueError, match="online_max_new_tokens: expected at least 1, found 0"):
        trainer(tmp_path, tokenizer, online_max_new_tokens=0)
