"""A reference that follows the policy: TR-DPO's soft and hard updates, for any loss, for full models and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignlab.runtime import zero_stage

from .frozen import FrozenModel, OtherAdapter

REFERENCE_STATE = "reference.safetensors"


class ReferenceSync(TrainerCallback):  # type: ignore[misc]
    """Moves the reference towards the policy after every so many optimiser steps.

    Soft: ``ref <- alpha * policy + (1 - alpha) * ref``; hard: the same with alpha = 1. Of adapters it is the matrices
    that are mixed, each by itself, not their products; the base is shared.

    Args:
        policy: the model that is trained.
        reference: a live reference that has the same weights: a copy, or another adapter on the same base.
        alpha: share of the policy, in (0, 1]. steps: optimiser steps between updates.

    Raises:
        ValueError: the reference does not have the policy's weights.

    Source: Gorbatovski et al. 2024, arXiv:2404.09656.
    """

    def __init__(self, policy: nn.Module, reference: FrozenModel, alpha: float, steps: int) -> None:
        self.policy, self.reference, self.alpha, self.steps = policy, reference, alpha, steps
        own, theirs = self.policy_weights(), self.reference_weights()
        other = sorted(own.keys() ^ theirs.keys()) or [name for name in own if own[name].shape != theirs[name].shape]
        if other or not all(value.is_floating_point() for value in theirs.values()):
            raise ValueError(
                f"sync_ref_model: the reference ({reference.description}) cannot follow the policy: their weights are "
                f"not the same in kind{f', for example {other[0]}' if other else ''}; leave the reference out"
            )

    def policy_weights(self) -> dict[str, Tensor]:
        """Returns the policy's weights that the reference follows, by name, where they are."""
        adapter = self.policy.active_adapter if isinstance(self.reference, OtherAdapter) else None
        return _weights(self.policy, adapter)  # type: ignore[arg-type]

    def reference_weights(self) -> dict[str, Tensor]:
        """Returns the weights of the reference, by name, where they are."""
        adapter = self.reference.name if isinstance(self.reference, OtherAdapter) else None
        return _weights(self.reference.loaded(), adapter)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the reference once; the sum is made in float32 at least."""
        own = self.policy_weights()
        for name, weight in self.reference_weights().items():
            dtype = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(torch.lerp(weight.to(dtype), own[name].to(weight.device, dtype), self.alpha))

    def save(self, folder: Path) -> None:
        """Writes the reference's weights into a checkpoint folder."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.reference_weights().items()}
        save_file(state, folder / REFERENCE_STATE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restores the reference's weights exactly.

        Raises:
            ValueError: if the checkpoint holds none, or those of another model.
        """
        path, weights = folder / REFERENCE_STATE, self.reference_weights()
        if not path.is_file():
            raise ValueError(f"{folder} holds no {REFERENCE_STATE}: it was not written with sync_ref_model: true")
        saved = load_file(path)
        if saved.keys() != weights.keys():
            raise ValueError(f"{path} holds the weights of another reference than this run's")
        for name, weight in weights.items():
            weight.copy_(saved[name])


def check_sync(deepspeed: str | dict[str, Any] | None, fsdp: Any) -> None:
    """Raises ValueError where weights are sharded, so that no rank holds what the reference follows."""
    if zero_stage(deepspeed) == 3 or fsdp:
        raise ValueError(
            "sync_ref_model: under ZeRO-3 and FSDP each rank holds a part of the policy's weights only, and the "
            "reference cannot follow them; allowed: ZeRO-2, DDP, one process"
        )


def _weights(model: nn.Module, adapter: str | None) -> dict[str, Tensor]:
    """Returns the weights of a model, or of one of its adapters under names that leave the adapter's out."""
    if adapter is None:
        return dict(model.named_parameters())
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return state
