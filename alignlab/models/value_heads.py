"""Reward models: decoders with a value head, recognised, padded, and saved with the way they read texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from alignlab.config import holds_adapter

logger = logging.getLogger(__name__)
RECORD = "reward_model.json"
_READING = "alignlab_reading"  # how texts become tokens, kept on the model until it is saved
_TASK = "SEQ_CLS"


def outputs_of(path: str, revision: str = "main") -> int | None:
    """Returns how many values a saved reward model gives; None for a language model, or where nothing can be read.

    A reward model is a sequence classifier, or an adapter of one, which says in ``reward_model.json`` how many.
    """
    record = reading_of(path, revision)
    if record is not None:
        return int(record["outputs"])
    if holds_adapter(path):
        return _outputs_of_adapter(path)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except Exception:  # whatever is wrong with it, loading it says so
        return None
    classes = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return int(config.num_labels) if classes else None


def _outputs_of_adapter(path: str) -> int | None:
    from peft import PeftConfig
    from safetensors import safe_open

    if _task_of(PeftConfig.from_pretrained(path)) != _TASK:
        return None
    with safe_open(Path(path) / "adapter_model.safetensors", framework="pt") as file:
        heads = [name for name in file.keys() if name.endswith("score.weight")]  # noqa: SIM118
        return int(file.get_slice(heads[0]).get_shape()[0]) if heads else None


def reading_of(path: str, revision: str = "main") -> dict[str, Any] | None:
    """Returns what ``reward_model.json`` of a folder or hub id says: "outputs", and "reading", the options of rows.

    Raises:
        ValueError: there is one that cannot be read, or says something else.
    """
    if Path(path).exists():
        file = Path(path) / RECORD
        found: Any = file if file.is_file() else None
    else:
        try:
            found = cached_file(path, RECORD, revision=revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # no folder, and no name that the hub could know: loading it says so
            found = None
    return None if found is None else _record(Path(found))


def _record(file: Path) -> dict[str, Any]:
    """Reads ``reward_model.json``; whoever edits it by hand is told what is wrong with it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    found = found if isinstance(found, dict) else {}
    outputs, reading = found.get("outputs"), found.get("reading")
    if type(outputs) is not int or outputs < 1 or not isinstance(reading, dict):
        raise ValueError(
            f"{file}: expected outputs, a whole number from 1, and reading, options by name; found outputs {outputs!r} "
            f"and reading {reading!r}"
        )
    return {"outputs": outputs, "reading": reading}


def save_reading(model: nn.Module, folder: Path) -> None:
    """Writes ``reward_model.json`` beside a saved reward model that was told how it reads; nothing for others."""
    record = getattr(model, _READING, None)
    if record is not None:
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def settle_reading(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pad_id: int, outputs: int, reading: Mapping[str, Any]
) -> None:
    """Tells a reward model which token pads, and keeps for its record how its texts became tokens.

    A sequence classifier of transformers reads its value at the last token that is not the pad token of its config. A
    tokenizer without a pad token pads with EOS from here on, as the model expects; the value is then read before EOS.
    """
    config: Any = model.config
    text = config.get_text_config()
    if text.pad_token_id not in (None, pad_id):
        logger.warning(
            "the model's pad token was %s and is the tokenizer's now, %s: values are read at the last token that is "
            "no pad token",
            text.pad_token_id,
            pad_id,
        )
    text.pad_token_id = config.pad_token_id = pad_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
        logger.info("the tokenizer has no pad token: it pads with %s", tokenizer.pad_token)
    setattr(model, _READING, {"outputs": outputs, "reading": dict(reading)})


def check_task(config: Any, outputs: int) -> None:
    """Refuses an adapter whose task does not fit the model's head.

    Raises:
        ValueError: ``task_type`` would leave a value head as it was drawn, or give a language model one.
    """
    task = _task_of(config)
    if outputs and task != _TASK:
        raise ValueError(
            f"peft.task_type: {task} would leave the value head `score` as it was drawn, frozen and unsaved; expected "
            f"{_TASK}, which trains and saves it"
        )
    if not outputs and task == _TASK:
        raise ValueError(f"peft.task_type: {_TASK} is for losses that read values; this one reads log-probabilities")


def widen_head(head: nn.Module) -> None:
    """Makes a trained value head in half precision float32, as adapters are; it takes hidden states of any dtype."""
    for module in head.modules():
        if isinstance(module, nn.Linear) and module.weight.requires_grad and module.weight.dtype.itemsize == 2:
            module.to(torch.float32)
            module.register_forward_pre_hook(_as_weight)


def _as_weight(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].to(module.weight.dtype), *args[1:])


def _task_of(config: Any) -> str:
    task = getattr(config, "task_type", None)
    return str(getattr(task, "value", task))
