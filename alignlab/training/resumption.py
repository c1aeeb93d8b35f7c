"""Going on from a checkpoint of another config: what differs, what is refused, and how what is new is applied."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import TRAINER_STATE_NAME

from alignlab.checkpoints import write_whole
from alignlab.config import CANNOT, CHANGES, HARMLESS, Difference, differences

logger = logging.getLogger(__name__)
Values = dict[str, Any]

RUN = "run.json"  # in a checkpoint
ROWS_A_STEP = "rows a step"
_LENGTH = ("max_steps", "num_train_epochs")
_KEPT = ("params", "lr")  # of an optimiser's group: its weights, and what the scheduler sets


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint says of the run that wrote it.

    Attributes:
        config: what the run was told, in the blocks of a config.
        rows: number of training rows, and a hash of them in their order.
        rows_a_step: over all ranks and micro-batches. ranks: how many there are.
        cut: rows that a loss couples, where it couples those of a micro-batch; else None.
    """

    config: Values
    rows: str
    rows_a_step: int
    ranks: int
    cut: int | None = None

    def write(self, checkpoint: Path) -> None:
        """Writes ``run.json``."""
        write_whole(checkpoint / RUN, json.dumps(vars(self), indent=1, sort_keys=True) + "\n")


def compare(checkpoint: Path, now: RunIdentity, agreed: bool) -> list[Difference]:
    """Returns what differs between the run that wrote a checkpoint and the one that goes on from it, and logs it.

    Args:
        agreed: whether ``resume_with_changes`` says that changes are meant.

    Raises:
        ValueError: the run cannot go on from it, or something would change it and is not agreed to; names the keys.
    """
    try:
        before = RunIdentity(**json.loads((checkpoint / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        logger.warning("resume_from_checkpoint: %s does not say what it is of: nothing is compared", checkpoint)
        return []
    found = differences(before.config, now.config) + _of_data(checkpoint, before, now)
    kinds = (CANNOT, CHANGES, HARMLESS)
    found = sorted(found, key=lambda one: kinds.index(one.kind))
    if not found:
        return []
    level = logging.WARNING if found[0].kind != HARMLESS else logging.INFO
    logger.log(level, "%s was written by another config:\n%s", checkpoint, "\n".join(f"  {one}" for one in found))
    for kind, advice in (
        (CANNOT, "start a new run, in another output_dir"),
        (CHANGES, "to go on with what is new, set resume_with_changes: true"),
    ):
        keys = [f"{one.key} ({one.before} -> {one.now})" for one in found if one.kind == kind]
        if keys and not (kind == CHANGES and agreed):
            raise ValueError(f"resume_from_checkpoint: {checkpoint}: {kind}: {', '.join(keys)}; {advice}")
    return found


def _of_data(checkpoint: Path, before: RunIdentity, now: RunIdentity) -> list[Difference]:
    found = []
    if before.rows != now.rows:
        found.append(Difference("data.train: rows", before.rows, now.rows, CANNOT))
    if before.rows_a_step != now.rows_a_step:
        epoch = float(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["epoch"])
        at_boundary = epoch.is_integer()
        key = ROWS_A_STEP if at_boundary else f"{ROWS_A_STEP} within an epoch (at {epoch:.3g})"
        found.append(Difference(key, before.rows_a_step, now.rows_a_step, CHANGES if at_boundary else CANNOT))
    elif before.cut != now.cut:
        found.append(
            Difference("per_device_train_batch_size, whose rows the loss couples", before.cut, now.cut, CHANGES)
        )
    if before.ranks != now.ranks:
        found.append(Difference("ranks", before.ranks, now.ranks, HARMLESS))
    return found


def is_of_another_schedule(found: Sequence[Difference]) -> bool:
    """True where optimiser and schedule in the checkpoint are not, or may not be, those of this run."""
    return any(one.kind == CHANGES or one.key in _LENGTH for one in found)


def own_settings(optimizer: Any) -> list[Values]:
    """Returns the settings of an optimiser's groups, before a checkpoint puts its own in their place."""
    groups = getattr(optimizer, "param_groups", ())
    return [{name: value for name, value in group.items() if name not in _KEPT} for group in groups]


def apply_settings(optimizer: Any, scheduler: Any, settings: Sequence[Values], step: int) -> tuple[float, float] | None:
    """Gives a loaded optimiser the settings and the schedule of this run; returns the old and the new learning rate.

    The rate of the next step is what the new schedule has for it, as if it had been the schedule from the start. A
    schedule that follows a metric has no rate of a step: it goes on as it was loaded, and None is returned.

    Args:
        settings: what ``own_settings`` returned. step: optimiser steps done.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
    groups = optimizer.param_groups
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    if not isinstance(scheduler, LambdaLR):
        return None
    old = float(groups[0]["lr"])
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    scheduler.last_epoch = step
    rates = [base * rule(step) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
    return old, float(rates[0])
