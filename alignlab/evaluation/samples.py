"""Greedy answers to a few held-out prompts before training and after, for the report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import orjson
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from alignlab import models
from alignlab.checkpoints import write_whole
from alignlab.runtime import is_main, unwrap
from alignlab.sampling import end_tokens, sample_answers, texts

from .drawing import first_of_each_prompt

logger = logging.getLogger(__name__)
FILE = "samples.json"
MAX_NEW_TOKENS = 128


class SampleAnswers(TrainerCallback):  # type: ignore[misc]
    """Writes ``samples.json``: prompts with their answers before the first step, and with ``after`` those at the end.

    Every rank generates, because a sharded model needs them all; rank 0 writes. Greedy answers draw no random numbers
    and leave the model's modes as they were, so training goes as it would have gone. A resumed run keeps the answers
    from before its first step.

    Args:
        model: the policy, asked only how long a text it takes.
        tokenizer: turns token ids to text.
        dataset: tokenised held-out rows; of the first ``count`` different prompts, those that leave room for an answer
            are answered.
        folder: of the run.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Any, count: int, folder: Path
    ) -> None:
        places = first_of_each_prompt(dataset, count) if count else []
        prompts = [dataset[place]["prompt_ids"] for place in places]
        room = models.room_of(model)
        self.prompts = [one for one in prompts if room is None or len(one) < room.tokens]
        longest = max(map(len, self.prompts), default=0)
        self.max_new_tokens = MAX_NEW_TOKENS if room is None else min(MAX_NEW_TOKENS, room.tokens - longest)
        self.tokenizer, self.path = tokenizer, folder / FILE
        self.rows: list[dict[str, Any]] = []
        try:
            end_tokens(unwrap(model), tokenizer)
        except ValueError as error:
            logger.warning("no samples for the report: %s", error)
            self.prompts = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Answers before the first step; the engine has taken the model by now, as sharded weights need."""
        if state.global_step > 0:
            self.rows = orjson.loads(self.path.read_bytes())["rows"] if self.path.is_file() else []
        elif self.prompts and model is not None:
            before = self._answers(model)
            prompts = [self.tokenizer.decode(prompt) for prompt in self.prompts]
            pairs = zip(prompts, before, strict=True)
            self.rows = [
                {"prompt": prompt, "before": text, "before_tokens": tokens, "after": None, "after_tokens": None}
                for prompt, (text, tokens) in pairs
            ]
            self._write()

    def after(self, model: nn.Module) -> None:
        """Answers the same prompts at the end of training."""
        if len(self.rows) != len(self.prompts):  # resumed from a checkpoint of a run without samples, or with others
            return
        for row, (text, tokens) in zip(self.rows, self._answers(model), strict=True):
            row["after"], row["after_tokens"] = text, tokens
        if self.rows:
            self._write()

    def _answers(self, model: nn.Module) -> list[tuple[str, int]]:
        answers = sample_answers(model, self.tokenizer, self.prompts, None, max_new_tokens=self.max_new_tokens)
        written = texts(self.tokenizer, answers)
        return [(text, len(one.completion)) for text, one in zip(written, answers, strict=True)]

    def _write(self) -> None:
        if is_main():
            text = json.dumps({"max_new_tokens": self.max_new_tokens, "rows": self.rows}, indent=2, ensure_ascii=False)
            write_whole(self.path, text + "\n")
