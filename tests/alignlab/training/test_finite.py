"""What the host waits for: nothing in a micro-batch, and the losses of a step's rows once, before the weights move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_counts import micro_batch_counts
from making import make_model, make_rows

from alignlab.config import PreferenceConfig
from alignlab.losses import Pairs
from alignlab.training import PreferenceTrainer


@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo", "tdpo"])
def test_a_micro_batch_waits_for_nothing_and_is_copied_whole(loss: str, tmp_path: Path) -> None:
    """The two waits of an optimiser step are for the losses and the gradient's norm; none is the stock Trainer's."""
    found = micro_batch_counts(loss, tmp_path)
    assert (found["waits"], found["where"]) == (0, "")
    assert found["copies"] == (2 if loss == "kto" else 1), "KTO's totals are made beforehand, of the same batches"
    assert found["where_a_step"] == (
        "alignlab/training/finite.py:check 1; alignlab/training/resumable.py:_get_grad_norm 1"
    )


def test_the_stock_filter_of_losses_would_wait_twice_a_micro_batch(tmp_path: Path) -> None:
    found = micro_batch_counts("simpo", tmp_path, logging_nan_inf_filter=True)
    assert "transformers/trainer.py:_run_epoch 4" in found["where_a_step"]


def broken(batch: Pairs) -> torch.Tensor:
    """NaN where the chosen completion is longer than the rejected one."""
    margin = batch.chosen.sum_logps - batch.rejected.sum_logps
    return torch.where(batch.chosen.lengths > batch.rejected.lengths, margin * float("nan"), margin)


def test_rows_of_every_micro_batch_are_named_before_the_weights_move(tokenizer: Any, tmp_path: Path) -> None:
    """Four micro-batches of two rows: exactly the rows that were broken, in no order, and weights as they were made."""
    rows = make_rows(8)
    args: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "save_strategy": "no",
    }
    args |= {"train_sampling_strategy": "sequential", "disable_tqdm": True, "learning_rate": 1.0}
    run = PreferenceTrainer(
        make_model(), PreferenceConfig(output_dir=str(tmp_path), **args), broken, rows, None, tokenizer
    )
    assert run.data.train is not None
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in run.data.train]
    named = [run.data.train[n]["source"] for n, (chosen, rejected) in enumerate(lengths) if chosen > rejected]
    assert 2 < len(named) <= 5, "more than one micro-batch has some, and a message names all"
    before = [weight.detach().clone() for weight in run.model.parameters()]
    with pytest.raises(FloatingPointError) as error:
        run.train()
    begin, _, found = str(error.value).partition(" for ")
    assert begin == "the loss is not a finite number"
    assert sorted(found.split(", ")) == sorted(named)
    assert all(map(torch.equal, before, run.model.parameters()))
