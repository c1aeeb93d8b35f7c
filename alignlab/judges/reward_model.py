"""A reward model as a judge: a sequence classifier with one output, and the higher reward wins."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignlab.cache import fingerprint_model
from alignlab.config import ModelOptions, holds_adapter
from alignlab.data import RowError, ScoredSequence, TextReader, layout_sequences, tokenizer_digest
from alignlab.models import architecture, load_model, outputs_of, pad_token_id, reading_of, torch_dtype
from alignlab.runtime import unsharded
from alignlab.scoring import base_of, values

from .judge import Comparison, Judge, Prompt, Verdict, by_rewards, prompt_text


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """How a reward model is loaded and run.

    Attributes:
        batch_size: texts a forward. max_length: tokens, cut on the left; one of ours is cut as it was trained.
        dtype: of the weights; "auto" as they were saved.
    """

    batch_size: int = 8
    max_length: int = 2048
    dtype: str = "auto"


class RewardModel(Judge):
    """A sequence classifier with one output: the completion with the higher reward wins.

    Messages go through its chat template where it has one; other prompts are put right before the completion. One that
    was trained here says in ``reward_model.json`` how its rows became tokens: texts are read in the same way, and its
    value at the same token, so that rewards are those that it had in training.

    Args:
        path: folder or hub id.
    """

    kind = "reward"

    def __init__(self, path: str, options: RewardOptions = RewardOptions()) -> None:
        self.description = f"reward model {path}"
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right", truncation_side="left")
        record = reading_of(path)
        self.reader = None if record is None else TextReader(self.tokenizer, record["reading"])
        model = _load(path, options.dtype, 1 if record is None else record["outputs"])
        _check_one(path, model.config.num_labels)
        self.pad = pad_token_id(self.tokenizer)
        base_of(model).config.get_text_config().pad_token_id = self.pad  # the reward is read at the last other token
        self.model, self.options = model.eval().requires_grad_(False), options
        self._reading = [tokenizer_digest(self.tokenizer), self.reader.options if self.reader else options.max_length]
        self._fingerprint: str | None = None

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns verdicts by the rewards of both texts."""
        texts = [(one.prompt, text) for one in comparisons for text in (one.answer, one.reference)]
        rewards = self.rewards(texts)
        return [by_rewards(rewards[2 * n], rewards[2 * n + 1]) for n in range(len(comparisons))]

    def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float | None]:
        """Returns the reward of each answer; one that is no finite number is unjudged."""
        found = self.rewards([(prompt, one) for one in answers])
        return [one if math.isfinite(one) else None for one in found]

    def identity(self) -> str:
        """Returns the fingerprint of its weights, and a digest of how it reads: tokenizer, template, length."""
        if self._fingerprint is None:
            dtype = str(self.model.dtype).removeprefix("torch.")
            self._fingerprint = fingerprint_model(self.model, compute_dtype=dtype)
        return f"{self._fingerprint} {hashlib.blake2b(repr(self._reading).encode(), digest_size=16).hexdigest()}"

    def rewards(self, texts: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Returns the reward of each completion of a prompt; NaN for one that its model cannot read."""
        device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
        self.model.to(device)
        found: list[float] = []
        if self.reader is not None:
            return self._read(self.reader, texts)
        for start in range(0, len(texts), self.options.batch_size):
            rows = [self._ids(*text) for text in texts[start : start + self.options.batch_size]]
            width = max(map(len, rows))
            ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
            with torch.no_grad():
                found += self._last(ids, mask)
        return found

    def _read(self, reader: TextReader, texts: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Returns rewards as a model of ours was trained to give them."""
        found, rows = [math.nan] * len(texts), list[tuple[int, ScoredSequence]]()
        for index, (prompt, answer) in enumerate(texts):
            plain = prompt_text(prompt) if self.tokenizer.chat_template is None else prompt
            try:
                ids = [np.array(part, dtype=np.int64) for part in reader.ids(plain, answer)]
            except RowError:
                continue
            rows.append((index, ScoredSequence(ids[0], ids[1], np.ones(len(ids[1]), dtype=bool))))
        for start in range(0, len(rows), self.options.batch_size):
            batch = rows[start : start + self.options.batch_size]
            layout = send_to_device(layout_sequences([one for _, one in batch], self.pad), self.model.device)
            with torch.no_grad():
                rewards = values(self.model, layout)[0, :, 0].tolist()
            for (index, _), reward in zip(batch, rewards, strict=True):
                found[index] = reward
        return found

    def _last(self, ids: Tensor, mask: Tensor) -> list[float]:
        """Returns rewards at each row's last token, also where the pad token stands in the text itself."""
        head = getattr(self.model, "score", None)
        if head is None:  # an encoder: it pools as it was made to
            logits: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
            return logits
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(-1) - 1]
        rewards: list[float] = head(last)[:, 0].float().tolist()
        return rewards

    def _ids(self, prompt: Prompt, completion: str) -> list[int]:
        if isinstance(prompt, list) and self.tokenizer.chat_template is not None:
            turns = [*prompt, {"role": "assistant", "content": completion}]
            ids: list[int] = self.tokenizer.apply_chat_template(turns, return_dict=False)
            return ids[-self.options.max_length :]
        whole: list[int] = self.tokenizer(prompt_text(prompt) + completion)["input_ids"]
        return whole[-self.options.max_length :]


def check_reward_model(path: str) -> None:
    """Refuses what is no reward model, by its config: no weight is read.

    Raises:
        ValueError: there is no such model, or it has not one output.
    """
    config = architecture(ModelOptions(path))
    _check_one(path, outputs_of(path) or config.num_labels)


def _check_one(path: str, outputs: int) -> None:
    if outputs != 1:
        raise ValueError(f"judge: {path} has {outputs} outputs; a reward model has one")


def _load(path: str, dtype: str, outputs: int) -> Any:
    """Returns a sequence classifier; an adapter of one on its base."""
    with unsharded():
        if holds_adapter(path):
            return load_model(ModelOptions(path, dtype=dtype), outputs=outputs)  # type: ignore[arg-type]
        return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch_dtype(dtype))
