"""Layers compiled one by one: few graphs for ragged lengths, the same numbers, nothing compiled afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from making import make_model, make_rows
from torch import nn
from torch._dynamo.utils import counters

from alignlab.config import PreferenceConfig
from alignlab.data import layout_sequences, sequence
from alignlab.data.layout import Mode
from alignlab.runtime import compiled_layers, uncompiled
from alignlab.scoring import score
from alignlab.training import PreferenceTrainer

LENGTHS = ((7, 5, 3), (4, 9, 2), (11, 6, 4), (3, 3, 8), (5, 12, 4), (9, 2, 7))  # of six batches


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def batch(lengths: tuple[int, ...], mode: Mode) -> Any:
    """Two trees of the same lengths, laid out in two rows or in four."""
    chance = torch.Generator().manual_seed(sum(lengths))
    prompt, chosen, rejected = (torch.randint(2, 300, (n,), generator=chance).numpy() for n in lengths)
    row = {"prompt_ids": prompt, "a_ids": chosen, "b_ids": rejected, "a_mask": chosen > 0, "b_mask": rejected > 0}
    other = {**row, "prompt_ids": prompt[::-1].copy()}
    return layout_sequences([sequence(one, field) for one in (row, other) for field in "ab"], 0, mode, row_length=8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["padded", "rows"])
def test_two_graphs_for_ragged_batches_and_the_same_numbers(mode: Mode, checkpointing: bool) -> None:
    """Values and gradients are equal to the last bit; the graphs are those of one length and of any."""
    plain, compiled = make_model(num_hidden_layers=3), make_model(num_hidden_layers=3)
    for model in (plain, compiled):
        model.set_attn_implementation("sdpa")
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with compiled_layers(compiled, "eager", None) as count:
        assert count == 3
        for lengths in LENGTHS:
            layout = batch(lengths, mode)
            assert len(layout["input_ids"]) > 1
            found = []
            for model in (plain, compiled):
                model.zero_grad()
                scores = score(model, layout)["logps"]
                scores.sum().backward()
                found.append([scores.detach(), *(weight.grad.clone() for weight in model.parameters())])
            assert all(map(torch.equal, *found))
    assert graphs() <= 2
    assert not counters["graph_break"]


def test_nothing_is_compiled_afterwards_nor_where_it_is_forbidden() -> None:
    model, layout = make_model(), batch(LENGTHS[0], "padded")
    with compiled_layers(model, "eager", None), uncompiled():
        score(model, layout)
    score(model, layout)
    assert graphs() == 0


def test_a_model_without_layers_is_refused() -> None:
    refused = pytest.raises(ValueError, match="torch_compile: Sequential has no list of layers of one class")
    with refused, compiled_layers(nn.Sequential(nn.Linear(1, 1)), "eager", None):
        pass


def test_a_run_compiles_two_graphs_and_goes_as_it_would(tokenizer: Any, tmp_path: Path) -> None:
    """Six steps of ragged rows, the head's proof and a large vocabulary's chunks among them, bit for bit."""

    def losses(**options: Any) -> list[float]:
        args: dict[str, Any] = {"output_dir": str(tmp_path / "run"), "max_steps": 6, "save_strategy": "no"}
        args |= {"per_device_train_batch_size": 4, "logging_steps": 1, "layout": "padded", "disable_tqdm": True}
        args |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", **options}
        run = PreferenceTrainer(make_model(), PreferenceConfig(**args), "dpo", make_rows(24), None, tokenizer)
        run.train()
        return [entry["loss"] for entry in run.state.log_history if "loss" in entry]

    expected = losses()
    assert graphs() == 0
    assert losses(torch_compile=True, torch_compile_backend="eager") == expected
    assert 1 <= graphs() <= 2
    torch._dynamo.reset()
    counters.clear()
    assert losses() == expected, "the stock Trainer would compile here too: it leaves the wish in the environment"
    assert graphs() == 0
