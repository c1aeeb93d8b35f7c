"""Sampled answers are scored exactly under both models."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from making import make_rows

from alignlab.evaluation import log_likelihoods, sequence_kl
from alignlab.evaluation.answers import answer_rows
from alignlab.evaluation.drawing import Sampling
from alignlab.sampling import sample_answers
from alignlab.scoring import choose_layout

PAD = 0


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_answers_are_scored_under_both_models(
    layout: str, policy: Any, other: Any, dataset: Any, tokenizer: Any
) -> None:
    """log p, its ratio to the reference and the KL over the whole vocabulary, against separate plain forwards."""
    mode = choose_layout(layout, [policy, other], PAD)
    sampling = Sampling(4, samples=2, max_new_tokens=8, batch_size=3)
    rows = answer_rows(policy, tokenizer, dataset, sampling, None, lambda: nullcontext(other), mode=mode)
    assert [(row.row, row.sample) for row in rows] == [(n, k) for n in range(4) for k in range(2)]
    prompts = [dataset[row.row]["prompt_ids"] for row in rows]
    seeds = [row.row * 2 + row.sample for row in rows]
    answers = sample_answers(policy, tokenizer, prompts, seeds, max_new_tokens=8)
    assert [row.tokens for row in rows] == [len(one.completion) for one in answers]
    mine, theirs = (log_likelihoods(model, answers, PAD).tolist() for model in (policy, other))
    assert [row.logp for row in rows] == pytest.approx(mine, abs=1e-3)
    assert [sum(row.log_ratios) for row in rows] == pytest.approx(np.subtract(mine, theirs).tolist(), abs=1e-3)
    kl = sequence_kl(policy, other, answers, PAD).tolist()
    assert [sum(row.token_kl) for row in rows] == pytest.approx(kl, abs=1e-3)
    assert min(kl) > 0.01
    assert [row.reference for row in rows[::2]] == [one["chosen"] for one in make_rows(7, groups=("a", "b"))[:4]]
