"""Answers that the policy draws in a training step, put beside the pairs that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignlab import models
from alignlab.config import PreferenceConfig
from alignlab.data import Mode, ScoredSequence, layout_fields, lengths
from alignlab.runtime import uncompiled, unwrap, zero_stage
from alignlab.sampling import end_tokens, sample_answers

from .sets import TrainingData

ONLINE = "online"
Inputs = Mapping[str, Any]


@dataclass
class OnlineSampler:
    """Draws one answer to each prompt of a micro-batch, and lays it out with the pairs: they share the prompt.

    The seed of an answer is a hash over the run's seed, the optimiser step and the row: the same on any rank, in any
    cut of the step, and after a resume. In evaluation the step is -1, so that every evaluation draws the same luck.

    Attributes:
        tokenizer, pad_id, mode, autocast: those of the trainer. seed: of the run.
        max_new_tokens: most tokens of an answer.
        step: the optimiser step that is drawn for.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    mode: Mode
    autocast: Callable[[], AbstractContextManager[Any]]
    seed: int
    max_new_tokens: int
    step: int = 0

    def extended(self, model: nn.Module, inputs: Inputs, *, training: bool) -> dict[str, Any]:
        """Returns a micro-batch whose layout has a last field "online" of the answers just drawn."""
        fields: dict[str, list[ScoredSequence]] = {name: list(rows) for name, rows in inputs["sequences"].items()}
        prompts = [one.prompt for one in next(iter(fields.values()))]
        step = self.step if training else -1
        seeds = [seed_of(self.seed, step, int(row)) for row in inputs["row"]]
        with uncompiled(), self.autocast():  # every token of an answer is another length
            answers = sample_answers(
                model, self.tokenizer, prompts, seeds, max_new_tokens=self.max_new_tokens, batch_size=len(prompts)
            )
        layout = layout_fields({**fields, ONLINE: answers}, self.pad_id, self.mode)
        device = inputs["completions"]["mask"].device
        return {**inputs, "completions": send_to_device(layout, device), "answers": answers}

    def finished(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Returns (sum, count) of the answers that were drawn to their end token, fillers left out."""
        ends, device = end_tokens(unwrap(model), self.tokenizer), inputs["completions"]["mask"].device
        whole = [
            float(int(answer.completion[-1]) in ends)
            for answer, real in zip(inputs["answers"], inputs["real"], strict=True)
            if real
        ]
        return torch.tensor(sum(whole), device=device), torch.tensor(float(len(whole)), device=device)


def seed_of(seed: int, step: int, row: int) -> int:
    """Returns the seed of one answer, 63 bits of a hash."""
    digest = hashlib.sha256(f"{seed} {step} {row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def online_sampler(
    model: nn.Module,
    data: TrainingData,
    args: PreferenceConfig,
    pad_id: int,
    mode: Mode,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> OnlineSampler | None:
    """Returns what draws answers in the step, if the loss needs them.

    Raises:
        ValueError: an engine shards the weights, which would be gathered anew for every token of every step; or the
            longest prompt leaves no room for an answer.
    """
    if not data.needs.online:
        return None
    if zero_stage(args.deepspeed) == 3 or args.fsdp:
        engine = "ZeRO-3" if args.deepspeed else "FSDP"
        raise ValueError(
            f"loss.name: it samples in every step, and {engine} would gather its shards for every token; use ZeRO-2"
        )
    _check_room(model, data, args.online_max_new_tokens)
    return OnlineSampler(data.tokenizer, pad_id, mode, autocast, args.seed, args.online_max_new_tokens)


def _check_room(model: nn.Module, data: TrainingData, most: int) -> None:
    """Refuses answers that would outgrow the model, which fails on some step or goes where it was never trained."""
    room = models.room_of(model)
    sets = [one for one in (data.train, *data.evaluations()) if one is not None and len(one)]
    longest = max((int(lengths(one, "prompt").max()) for one in sets), default=0)
    if room is not None and longest + most > room.tokens:
        left = f"expected at most {room.tokens - longest}, found {most}" if longest < room.tokens else "none is left"
        raise ValueError(
            f"online_max_new_tokens: the longest prompt has {longest} tokens and the model takes {room.tokens}; "
            f"{left}; or cut prompts by max_length"
        )
