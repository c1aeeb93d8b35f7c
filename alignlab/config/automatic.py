"""What a config leaves to the machine: each default that says "auto" is decided here, once, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.runtime import Machine, deepspeed_values

from .options import ModelOptions

AUTO = "auto"
DECIDED = ("bf16", "float32_matmul_precision", "gradient_checkpointing", "model.bnb_4bit_compute_dtype")  # by machines
Decision = tuple[Any, str]  # the value, and why


def decide(training: Mapping[str, Any], machine: Machine) -> dict[str, Decision]:
    """Returns what the keys of a training block that say "auto" become on this machine; other keys stay.

    ``gradient_checkpointing`` is off here: whether a run fits without it, only a plan of it tells (the planner).
    """
    ways = {"bf16": _bf16, "float32_matmul_precision": _matmul, "gradient_checkpointing": _checkpointing}
    return {name: way(training, machine) for name, way in ways.items() if training.get(name) == AUTO}


def four_bit_dtype(model: ModelOptions, machine: Machine) -> str:
    """Returns the dtype of the arithmetic on 4-bit weights: as asked, else bfloat16 where a device has it.

    Elsewhere it is that of the other weights.
    """
    if model.bnb_4bit_compute_dtype is not None:
        return model.bnb_4bit_compute_dtype
    if machine.accelerated and machine.bf16:
        return "bfloat16"
    return "float32" if model.dtype == AUTO else model.dtype


def checkpoints_activations(training: Mapping[str, Any]) -> bool:
    """Returns whether a training block asks for few activations: by transformers' newer name, else by the older.

    ``activation_checkpointing`` goes first where both are given, as in ``TrainingArguments``.
    """
    newer = training.get("activation_checkpointing")
    return (training.get("gradient_checkpointing") if newer is None else newer) is True


def _bf16(training: Mapping[str, Any], machine: Machine) -> Decision:
    if training.get("fp16"):
        return False, "fp16 is asked for"
    if training.get("deepspeed") is not None:
        said = deepspeed_values(training["deepspeed"])
        asked = said.get("bf16", {}).get("enabled", AUTO)
        if asked != AUTO:
            return bool(asked), "deepspeed says so"
        if said.get("fp16", {}).get("enabled", AUTO) is True or said.get("torch_autocast", {}).get("enabled"):
            return False, "deepspeed asks for another"
    if not machine.accelerated:
        return False, "no accelerator"
    return machine.bf16, "the device has it" if machine.bf16 else "the device has none"


def _matmul(training: Mapping[str, Any], machine: Machine) -> Decision:
    if training.get("tf32") is not None:
        return None, "tf32 is said"
    return ("high", "TF32 for what stays float32") if machine.tf32 else (None, "no TF32")


def _checkpointing(training: Mapping[str, Any], machine: Machine) -> Decision:
    if training.get("activation_checkpointing") is not None:
        return bool(training["activation_checkpointing"]), "activation_checkpointing says so"
    return False, "not planned" if machine.accelerated else "no accelerator"
