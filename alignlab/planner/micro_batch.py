"""The micro-batch that a config makes: its rows, its adapter, its reference, as the trace wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alignlab import losses
from alignlab.config import RunConfig, checkpoints_activations, holds_adapter
from alignlab.models import adapter_config
from alignlab.reference import choose_mode

from .trace import StepShape
from .zero import Zero

LIST_COMPLETIONS = 4  # of a list, where nothing bounds them: what rated sets have


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row's prompt and of each of its completions."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, config: RunConfig, prompt: int | None = None, completion: int | None = None) -> Lengths:
        """Takes what is given; the rest by ``max_length``, half of it the prompt: as long as rows can get."""
        longest = config.training.get("max_length") or 1024
        prompt = longest // 2 if prompt is None else prompt
        completion = max(longest - prompt, 1) if completion is None else completion
        if prompt < 1 or completion < 1:
            raise ValueError(
                f"tokens of prompt and completion: expected at least 1 of each, found {prompt}, {completion}"
            )
        return cls(prompt, completion)


def completions_of(config: RunConfig) -> int:
    """Returns how many completions of a row the policy scores with gradient; of a list ``max_completions``, or four."""
    needs = losses.build(config.loss).needs
    if needs.data == "labelled":
        return 1
    if needs.data == "lists":
        return int(config.training.get("max_completions") or LIST_COMPLETIONS)
    return 1 + needs.rejected + needs.gold + needs.online


def adapter_of(config: RunConfig) -> Mapping[str, Any] | None:
    """Returns the options of the policy's adapter, a new one or a saved one; None without."""
    model = config.model
    if config.peft is not None:
        return config.peft
    if model.adapter is None and not holds_adapter(model.name_or_path):
        return None
    saved = adapter_config(model.adapter or model.name_or_path).to_dict()
    return {name: saved[name] for name in ("peft_type", "r", "lora_alpha", "target_modules") if name in saved}


def reference_mode(config: RunConfig) -> str:
    """Returns where a run takes its reference from; see ``choose_mode``."""
    return choose_mode(
        config.training.get("reference", "auto"),
        losses.build(config.loss).needs,
        has_adapter=adapter_of(config) is not None,
        moves=bool(config.training.get("sync_ref_model")),
    )


def step_shape(config: RunConfig, architecture: Any, lengths: Lengths, zero: Zero, device: str = "cuda") -> StepShape:
    """Returns the micro-batch that a config makes, on a type of device, as the trace wants it."""
    training, model = config.training, config.model
    name = model.dtype if model.dtype != "auto" else str(architecture.dtype or "float32").removeprefix("torch.")
    dtype, compute = getattr(torch, name), None
    half = torch.bfloat16 if training.get("bf16") is True else torch.float16 if training.get("fp16") else None
    if half is not None and zero.stage:
        dtype = half  # DeepSpeed casts the model, and keeps float32 weights beside the optimiser's states
    else:
        compute = half
    mode = reference_mode(config)
    live = "none" if mode in ("none", "cached") else "kl" if losses.build(config.loss).needs.kl else "logps"
    return StepShape(
        dtype=dtype,
        compute=compute,
        four_bit=model.load_in_4bit,
        double_quant=model.bnb_4bit_use_double_quant,
        peft=adapter_of(config),
        checkpointing=checkpoints_activations(training),
        pairs=training["per_device_train_batch_size"],
        completions=completions_of(config),
        prompt=lengths.prompt,
        completion=lengths.completion,
        live=live,  # type: ignore[arg-type]
        device=device,
        outputs=losses.build(config.loss).needs.values,
    )
