"""The start of a new adapter, of those too that are made from training rows: EVA and CorDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab import models
from alignlab.config import PreferenceConfig
from alignlab.data import better_sequence
from alignlab.runtime import evaluating, placed

ROWS = 256  # what CorDA's authors take; EVA goes through them until its components stand still
_BATCH = 8
_PASSES = 50


def start_adapter(policy: Any, config: Any, train: Any | None, args: PreferenceConfig) -> Any:
    """Returns the policy with a new adapter.

    Args:
        train: tokenised training rows; prompts with their better (or only) completions make EVA's and CorDA's start.

    Raises:
        ValueError: there are no rows, or too few tokens of them, for a start that is made from them.
    """
    if models.kind_of(config).status != "rows":
        return models.add_adapter(policy, config)
    start = config.init_lora_weights
    if train is None:
        raise ValueError(f"peft.init_lora_weights: {start!r} is made from training rows, and there is no train_dataset")
    rows = rows_of(train, args.seed)
    with placed(policy, args.device, stays=not args.fsdp), evaluating(policy), torch.no_grad():
        try:
            return _corda(policy, config, rows) if start == "corda" else _eva(policy, config, rows)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"peft.init_lora_weights: {start!r} could not be made from the rows: {error}") from error


def rows_of(train: Any, seed: int) -> list[Tensor]:
    """Returns the token ids of up to 256 training rows, prompt and better completion, drawn by the seed; ``[T]``."""
    picked = np.sort(np.random.default_rng(seed).permutation(len(train))[:ROWS])
    rows = (better_sequence(row) for row in train.with_format("numpy").select(picked))
    return [torch.from_numpy(np.concatenate((one.prompt, one.completion))) for one in rows]


def _corda(policy: nn.Module, config: Any, rows: list[Tensor]) -> Any:
    """Adds an adapter of the directions that a layer's outputs over the rows have most of, taken out of the base."""
    from peft.tuners.lora.corda import preprocess_corda

    def run() -> None:
        device = next(policy.parameters()).device
        for row in rows:  # one at a time: its hooks know no padding
            policy(input_ids=row[None].to(device), use_cache=False)

    preprocess_corda(policy, config, run_model=run)
    return models.add_adapter(policy, config)


def _eva(policy: nn.Module, config: Any, rows: list[Tensor]) -> Any:
    """Adds an adapter whose A holds the principal components of each layer's inputs over the rows."""
    from peft import initialize_lora_eva_weights

    batches = list(_batches(rows))
    least = round(config.r * config.eva_config.rho)
    if max(int(batch["attention_mask"].sum()) for batch in batches) < least:
        raise ValueError(f"{least} components (r * eva_config.rho) need batches of as many tokens")
    passes = 0

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> None:
        nonlocal passes
        passes += 1
        if passes > _PASSES * len(batches):  # PEFT would go round and round
            raise ValueError(f"no convergence in {_PASSES} passes over {len(rows)} rows; lower peft.eva_config.tau")
        model(**inputs, use_cache=False)

    adapted = models.add_adapter(policy, config)
    initialize_lora_eva_weights(
        adapted, batches, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
    )
    return adapted


def _batches(rows: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yields padded batches that tell which positions are tokens."""
    for first in range(0, len(rows), _BATCH):
        some = rows[first : first + _BATCH]
        ids = nn.utils.rnn.pad_sequence(some, batch_first=True)
        lengths = torch.tensor([len(row) for row in some])
        yield {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
