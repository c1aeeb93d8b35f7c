"""Mistakes with devices, planted into the trainer's own code: on the pretend accelerator each of them is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pretend
import pytest
import torch
import zoo_ranks
from pretend import MixedDevices
from pretend_runs import Runs
from torch import Tensor

from alignlab.reference import separate
from alignlab.sampling import local
from alignlab.scoring import forward, packing
from alignlab.training import PreferenceTrainer, batch, step, trainer

Planted = tuple[Any, str, Callable[..., Any]]


@pytest.fixture(scope="module")
def runs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tokenizer, tmp_path_factory.mktemp("mistakes"))


_scored, _dense_mask, _token_logps, _positions = (
    batch._scored,
    packing._dense_mask,
    forward.token_logps,
    forward._only_positions,
)


def placed_on_the_cpu(values: Tensor, layout: Any) -> Tensor:
    shape = layout["mask"].shape
    return torch.zeros(shape.numel()).index_put((layout["slot"],), values).reshape(shape)


def noise_of_the_cpu(self: local.SeededGumbel, input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores + torch.rand(scores.shape, generator=self.generators[0])


def left_where_it_was(model: Any, *_: Any) -> Any:
    return model.requires_grad_(False).eval()


OTHER = {"reference": "live", "ref_model": zoo_ranks.tiny}
MISTAKES: dict[str, tuple[Planted, str, dict[str, Any]]] = {
    "a weight of the CPU in the objective": (
        (step, "contributions", lambda output, _: output.loss * torch.ones(len(output.loss))),
        "dpo",
        {},
    ),
    "an index on the CPU": ((forward, "_only_positions", lambda m, at: _positions(m, at.cpu())), "simpo", {}),
    "a mask built on the CPU": ((packing, "_dense_mask", lambda *of: _dense_mask(*of).cpu()), "simpo", {}),
    "targets on the CPU": ((forward, "token_logps", lambda z, at: _token_logps(z, at.cpu())), "dpo", {}),
    "scores put into a tensor of the CPU": ((forward, "place", placed_on_the_cpu), "simpo", {}),
    "metrics stacked across devices": (
        (trainer, "padding", lambda _: {"padding": (torch.zeros(()), torch.ones(()))}),
        "simpo",
        {},
    ),
    "a cached score that was not moved": (
        (
            batch,
            "_scored",
            lambda n, layout, own, other: _scored(n, layout, own, {k: v.cpu() for k, v in other.items()}),
        ),
        "dpo",
        {},
    ),
    "numpy of a tensor on the device": (
        (trainer, "row_metrics", lambda output, *_: output.loss.detach().numpy()),
        "simpo",
        {},
    ),
    "a reference that stayed behind": ((separate, "_only_scoring", left_where_it_was), "dpo", OTHER),
    "a batch that was not moved": ((PreferenceTrainer, "_prepare_input", lambda _, data: data), "simpo", {}),
    "noise drawn on the CPU": (
        (local.SeededGumbel, "__call__", noise_of_the_cpu),
        "simpo",
        {"eval_generations": 2, "eval_max_new_tokens": 2, "eval_strategy": "steps", "eval_steps": 1},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str, runs: Runs, tmp_path: Path) -> None:
    (owner, name, wrong), loss, options = MISTAKES[mistake]
    given = {**options, "ref_model": zoo_ranks.tiny(2)} if "ref_model" in options else options
    with (
        pretend.accelerator(),
        patch.object(owner, name, wrong),
        pytest.raises((MixedDevices, TypeError, ValueError), match=r"of the CPU|can't convert lazy:0"),
    ):
        runs.trainer(loss, max_steps=1, layout="packed", score_cache_dir=str(tmp_path), **given).train()
