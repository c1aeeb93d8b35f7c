"""Runs in which no weight can change, refused or named before the first step."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import nn

from alignlab.config import PreferenceConfig

logger = logging.getLogger(__name__)


def check_moves(policy: nn.Module, args: PreferenceConfig, train: Any | None, max_steps: int) -> None:
    """Looks whether a run can change a weight.

    Raises:
        ValueError: no weight is trainable, an adapter or every row counts nothing, or no step would be taken.
    """
    if not any(weight.requires_grad for weight in policy.parameters()):
        raise ValueError(
            "model: no weight of it is trainable (requires_grad is false for all; an adapter may say inference_mode: "
            "true), so nothing would be learned; unfreeze it, load an adapter with is_trainable=True, or give a new "
            "one with peft"
        )
    away = [name for name, one in getattr(policy, "peft_config", {}).items() if getattr(one, "lora_alpha", 1) == 0]
    if away:
        raise ValueError(
            f"peft.lora_alpha: it is 0 (adapter {', '.join(away)}), which scales the adapter away, so nothing would be "
            "learned; usual are r to 2 * r"
        )
    if max_steps < 1:
        raise ValueError(
            f"no step would be taken: num_train_epochs is {args.num_train_epochs:g}, max_steps {args.max_steps}; give "
            "more than 0 of one of them"
        )
    if train is not None and "weight" in train.column_names and not np.any(train.with_format("numpy")["weight"][:]):
        raise ValueError(f"weight: it is 0 in all {len(train)} training rows, so nothing would be learned")
    if args.learning_rate == 0:
        logger.warning("learning_rate: it is 0, so no weight changes")
