"""The model that answers, in this process: loaded, named by its content, and asked how likely answers are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab import models, scoring
from alignlab.cache import fingerprint_model
from alignlab.config import ModelOptions
from alignlab.data import Mode, ScoredSequence, layout_sequences
from alignlab.runtime import evaluating

from .local import end_tokens

DECIMALS = 4  # of a log-probability in a file: more would be those of the machine that scored it


class Policy:
    """A frozen model with its tokenizer.

    Attributes:
        name: the fingerprint of its weights, adapter and dtype: 32 hex digits.
        ends: the tokens that end an answer.
        tokens: how many it has embeddings of.
        room: the longest text that it takes, in tokens; None where it does not say.
    """

    def __init__(self, options: ModelOptions) -> None:
        self.tokenizer: PreTrainedTokenizerBase = models.load_tokenizer(options)
        model: Any = models.load_model(options).requires_grad_(False).eval()
        adapter = next(iter(getattr(model, "peft_config", {})), None)
        self.name = fingerprint_model(model, adapter=adapter, compute_dtype=str(model.dtype).removeprefix("torch."))
        device = PartialState(cpu=not torch.accelerator.is_available()).device
        self.model: nn.Module = model if models.is_quantised(model) else model.to(device)
        self.ends, self.pad = end_tokens(self.model, self.tokenizer), models.pad_token_id(self.tokenizer)
        self.tokens = int(getattr(model.get_input_embeddings(), "num_embeddings", len(self.tokenizer)))
        room = models.room_of(model)
        self.room: int | None = None if room is None else room.tokens

    @cached_property
    def _layout(self) -> tuple[Mode, Any]:
        return scoring.choose_layout("auto", [self.model], self.pad), scoring.head_of(self.model)

    def logps(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Returns log p(answer | prompt) in nats of all answers to one prompt, which share a forward pass.

        A prompt is scored by itself, so that what is written does not depend on what it was batched with.
        """
        mode, head = self._layout
        ids = np.asarray(prompt)
        rows = [ScoredSequence(ids, np.asarray(one), np.ones(len(one), dtype=bool)) for one in answers if len(one)]
        if not rows:
            return [0.0] * len(answers)
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            layout = send_to_device(layout_sequences(rows, self.pad, mode), device)
            sums = iter(scoring.score(self.model, layout, head=head)["logps"][0].double().sum(-1).tolist())
        return [round(next(sums), DECIMALS) if len(one) else 0.0 for one in answers]

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
