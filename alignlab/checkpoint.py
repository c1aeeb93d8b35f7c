"""What a checkpoint holds beyond the Trainer's own files: the state of the loss."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from .losses import Loss

LOSS_STATE = "loss_state.safetensors"


def save_loss(loss: Loss, folder: Path) -> None:
    """Writes the loss's state, such as group weights and running means, into a checkpoint folder."""
    state = {name: value.detach().cpu().contiguous() for name, value in loss.state_dict().items()}
    save_file(state, folder / LOSS_STATE)


def load_loss(loss: Loss, folder: Path) -> None:
    """Restores the loss's state exactly.

    Raises:
        ValueError: if the checkpoint holds none, or one of another loss.
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
    loss.load_state_dict(state)
