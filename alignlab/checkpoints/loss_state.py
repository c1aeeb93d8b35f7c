"""What a checkpoint holds beyond the Trainer's own files: the state of the loss."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignlab.losses import Loss

LOSS_STATE = "loss_state.safetensors"


def save_loss(loss: Loss, folder: Path, groups: Iterable[str] = ()) -> None:
    """Writes the loss's state, such as group weights and running means, into a checkpoint folder.

    State by group is kept by the groups' indices, so their names, in that order, are written beside it.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in loss.state_dict().items()}
    save_file(state, folder / LOSS_STATE, {"groups": json.dumps(list(groups))})


def load_loss(loss: Loss, folder: Path, groups: Iterable[str] = ()) -> None:
    """Restores the loss's state exactly.

    Raises:
        ValueError: if the checkpoint holds none, or one of another loss, or of other groups.
    """
    expected = set(loss.state_dict())
    path = folder / LOSS_STATE
    if not path.is_file():
        if expected:
            raise ValueError(f"{folder} holds no {LOSS_STATE}, but this loss has state: {', '.join(sorted(expected))}")
        return
    state = load_file(path)
    if set(state) != expected:
        raise ValueError(f"{path} holds {sorted(state)}, but this loss has {sorted(expected)}: another loss wrote it")
    if expected and "group" in loss.needs.columns:
        _check_groups(path, list(groups))
    loss.load_state_dict(state)


def _check_groups(path: Path, groups: list[str]) -> None:
    """Refuses state that belongs to other groups: by index it would fit, and weigh the wrong rows."""
    with safe_open(path, framework="pt") as file:
        saved = json.loads((file.metadata() or {}).get("groups", "null"))
    if saved != groups:
        raise ValueError(
            f"{path} holds the state of the groups {saved}, but the training data has {groups}; resume with the data "
            "that the run began with"
        )
