"""The average of two models' weights, as a model of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.checkpoints import put_in_place


def average(older: str, newer: str, share: float, folder: Path) -> None:
    """Saves share * older + (1 - share) * newer, in the dtype of the older; sums are in float32.

    Raises:
        ValueError: the models have other weights than each other.
    """
    result = AutoModelForCausalLM.from_pretrained(older, dtype="auto")
    other = dict(AutoModelForCausalLM.from_pretrained(newer, dtype="auto").named_parameters())
    with torch.no_grad():
        for name, one in result.named_parameters():
            if name not in other or other[name].shape != one.shape:
                raise ValueError(f"reference: {newer} has no {name} of shape {tuple(one.shape)}, as {older} has")
            mixed = share * one.float() + (1 - share) * other[name].float()
            one.copy_(mixed.to(one.dtype))
    with put_in_place(folder, "reference", together=False) as aside:
        result.save_pretrained(aside)
        AutoTokenizer.from_pretrained(older).save_pretrained(aside)
