"""What a run is: its loss, model, adapter and arguments as plain values, as they are kept in its checkpoints."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.losses import Loss
from alignlab.runtime import zero_stage

Values = dict[str, Any]

_NOT_TOLD = (
    *("parallelism_config", "local_rank", "hub_token"),  # an object, the launcher's, a secret
    *("resume_from_checkpoint", "resume_with_changes", "overwrite_output_dir"),  # of one start, not of the run
)
_NO_OPTIONS = ("training", "needs", "stops_gradient", "function")


def describe_run(loss: Loss, args: PreferenceConfig, options: ModelOptions, peft_config: Any | None) -> Values:
    """Returns what a run was told, defaults included, in the blocks of a config and as JSON has it.

    The loss stands there by what it computes, however it was written; folders of models with links resolved; of
    DeepSpeed the ZeRO stage alone, which decides what a checkpoint holds.
    """
    training = {name: value for name, value in args.to_dict().items() if name not in _NOT_TOLD}
    training["deepspeed"] = None if args.deepspeed is None else f"ZeRO {zero_stage(args.deepspeed)}"
    for name in ("ref_model_name_or_path", "ref_adapter"):
        training[name] = _place(training[name])
    model = asdict(options)
    model |= {name: _place(model[name]) for name in ("name_or_path", "adapter")}
    adapter = None if peft_config is None else peft_config.to_dict()
    told = {"loss": describe_loss(loss), "model": model, "peft": adapter, **training}
    values: Values = json.loads(json.dumps(told, default=_plain))
    return values


def describe_loss(loss: Loss) -> Values:
    """Returns the name of a loss and its options, and the same of the losses in it; of one's own a hash of its file."""
    function = getattr(loss, "function", None)
    values: Values = {"name": type(loss).__module__.rpartition(".")[2]}
    if function is not None or not type(loss).__module__.startswith("alignlab."):
        written = type(loss) if function is None else function
        values = {"name": getattr(written, "__qualname__", type(written).__name__), "source": _source_hash(written)}
    values |= {key: value for key, value in vars(loss).items() if _is_option(key, value)}
    for key, part in loss.named_children():
        if isinstance(part, Loss):
            values[key] = describe_loss(part)
        elif isinstance(part, nn.ModuleList):
            values[key] = {str(index): describe_loss(one) for index, one in enumerate(part) if isinstance(one, Loss)}
    return values


def _is_option(key: str, value: Any) -> bool:
    return not key.startswith("_") and key not in _NO_OPTIONS and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _source_hash(written: Any) -> str | None:
    """Returns a hash of the file that a loss of one's own is written in; None where it is in no file."""
    try:
        return hashlib.sha256(Path(inspect.getfile(written)).read_bytes()).hexdigest()[:12]
    except (OSError, TypeError):
        return None


def _place(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _plain(value: Any) -> Any:
    """Returns what JSON has for a set, or text for what it has nothing for."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
