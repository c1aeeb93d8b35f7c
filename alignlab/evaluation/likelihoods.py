"""How likely given answers are, and how far two models are apart on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from alignlab import scoring
from alignlab.data import ScoredSequence, layout_sequences
from alignlab.runtime import evaluating

BATCH = 64


def log_likelihoods(model: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Tensor:
    """Returns log p(completion | prompt) of each sequence, summed over the tokens that count, ``[N]``."""
    with evaluating(model):
        parts = [scoring.score(model, layout)["logps"][0].sum(-1) for layout in _layouts(model, sequences, pad_id)]
    return torch.cat(parts)


def sequence_kl(model: nn.Module, reference: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Tensor:
    """Returns sum_t KL(model || reference) over the whole vocabulary at each token of each completion, ``[N]``.

    Its mean over answers sampled from ``model`` estimates the KL divergence between both distributions of answers.
    """
    parts = []
    with evaluating(model), evaluating(reference):
        for layout in _layouts(model, sequences, pad_id):
            logits, ref_logits = (scoring.needed_logits(one, layout) for one in (model, reference))
            kl = scoring.token_kl(logits, ref_logits)  # KL(first || second)
            parts.append(scoring.place(kl, layout)[0].sum(-1))
    return torch.cat(parts)


def _layouts(model: nn.Module, sequences: Sequence[ScoredSequence], pad_id: int) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    for start in range(0, len(sequences), BATCH):
        yield send_to_device(layout_sequences(sequences[start : start + BATCH], pad_id), device)
