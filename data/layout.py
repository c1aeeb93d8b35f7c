"""Places prompts and completions into the rows that go through the model, and says which positions predict what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

PROMPT = "prompt"


@dataclass(frozen=True)
class ScoredSequence:
    """One prompt and one completion as token ids; ``mask`` says which completion tokens count."""

    prompt: np.ndarray
    completion: np.ndarray
    mask: np.ndarray


Layout = dict[str, Any]


def padded_layout(fields: Mapping[str, Sequence[ScoredSequence]], pad_id: int, *, score_prompt: bool = False) -> Layout:
    """Lays every completion out in a right-padded row of its own, behind its prompt.

    The completions form F fields ("chosen", "rejected", ...) of N rows each. With ``score_prompt`` a last field
    "prompt" holds the prompt's own tokens (all but the first, which nothing predicts), scored once a row.

    Returns a dict:
        fields: names of the F fields.
        input_ids, attention_mask: ``[R, S]`` int64, the rows that go through the model.
        predict: ``[M]`` int64, indices into the flattened ``[R * S]`` positions whose output predicts a needed token.
        target: ``[M]`` int64, the token predicted there.
        slot: ``[M]`` int64, where its score belongs in the flattened ``[F, N, T]``.
        mask: ``[F, N, T]`` bool, True where a token counts.
    """
    names = list(fields)
    sequences = [sequence for name in names for sequence in fields[name]]
    count = len(fields[names[0]])
    width = max(len(s.prompt) + len(s.completion) for s in sequences)
    depth = max(len(s.completion) for s in sequences)
    if score_prompt:
        depth = max(depth, *(len(s.prompt) for s in fields[names[0]]))
        names.append(PROMPT)

    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros((len(names) * count, depth), dtype=bool)
    predict, target, slot = [], [], []

    def need(row: int, tokens: np.ndarray, positions: np.ndarray, first: int, completion: int) -> None:
        """Asks for the scores of ``tokens[positions]``, which stand from ``first`` on in ``row``."""
        predict.append(row * width + first - 1 + positions)
        target.append(tokens[positions])
        slot.append(completion * depth + positions)
        mask[completion, positions] = True

    for row, s in enumerate(sequences):
        start, end = len(s.prompt), len(s.prompt) + len(s.completion)
        assert start > 0, "a prompt has at least one token"
        input_ids[row, :start], input_ids[row, start:end] = s.prompt, s.completion
        attention_mask[row, :end] = 1
        need(row, s.completion, np.flatnonzero(s.mask), start, row)
        if score_prompt and row < count:
            need(row, s.prompt, np.arange(1, start), 0, len(sequences) + row)

    return {
        "fields": names,
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "predict": torch.from_numpy(np.concatenate(predict)),
        "target": torch.from_numpy(np.concatenate(target).astype(np.int64)),
        "slot": torch.from_numpy(np.concatenate(slot)),
        "mask": torch.from_numpy(mask.reshape(len(names), count, depth)),
    }
