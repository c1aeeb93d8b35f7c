"""Answers that the policy draws to held-out prompts, scored under policy and reference, and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab import models, scoring
from alignlab.data import Mode, ScoredSequence, layout_sequences
from alignlab.judges import Comparison, Judge, Prompt, Verdict
from alignlab.runtime import evaluating, unwrap
from alignlab.sampling import end_tokens

from .dialogues import Dialogue, read_dialogues
from .drawing import Drawn, Sampling, draw, first_of_each_prompt
from .shares import joined

Runner = Callable[[], AbstractContextManager[nn.Module]]  # yields a frozen model, ready to score


@dataclass
class AnswerRow:
    """One sampled answer beside the row's chosen completion.

    ``log_ratios`` and ``token_kl`` are per token: policy minus reference log-probability, and KL(policy || reference)
    over the whole vocabulary; empty without a reference.
    """

    row: int
    sample: int
    source: str
    prompt: Prompt
    answer: str
    reference: str
    tokens: int
    reference_tokens: int
    finished: bool
    logp: float
    log_ratios: list[float]
    token_kl: list[float]
    verdict: Verdict | None = None


@dataclass(frozen=True)
class TokenScores:
    """An answer token by token: log p of the policy, and against a reference log p - log q and KL(p || q)."""

    logps: list[float]
    log_ratios: list[float] = field(default_factory=list)
    token_kl: list[float] = field(default_factory=list)


def answer_rows(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    sampling: Sampling,
    source: Any,
    reference: Runner | None = None,
    *,
    mode: Mode = "padded",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[AnswerRow]:
    """Returns sampled answers to prompts of a tokenised dataset, scored under policy and reference, on every rank.

    Args:
        source: what the dataset was read from, for prompts and chosen completions as they stood there; where they
            cannot be found again (None, say), the token ids are decoded.
        reference: yields the reference, for the divergence from it.
    """
    asked = first_of_each_prompt(dataset, sampling.count)
    # First of all: a source that cannot be read should not cost the answers.
    dialogues = read_dialogues(source, {str(dataset[index]["source"]) for index in asked})
    with autocast():
        drawn = draw(policy, tokenizer, dataset, asked, sampling)
    scores = score_answers(
        policy,
        reference,
        [one.answer for one in drawn],
        models.pad_token_id(tokenizer),
        batch_size=sampling.batch_size,
        mode=mode,
        autocast=autocast,
    )
    ends = end_tokens(unwrap(policy), tokenizer)
    rows = [
        _assembled(one, scored, dialogues.get(one.source) or _decoded(tokenizer, one), tokenizer, ends)
        for one, scored in zip(drawn, scores, strict=True)
    ]
    return joined(rows, lambda row: (row.row, row.sample))


def score_answers(
    policy: nn.Module,
    reference: Runner | None,
    answers: Sequence[ScoredSequence],
    pad_id: int,
    *,
    batch_size: int,
    mode: Mode,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[TokenScores]:
    """Returns the scores of answers; the divergence at each token is over the whole vocabulary."""
    head, other_head = scoring.head_of(policy), scoring.LazyHead()
    device, found = next(policy.parameters()).device, list[TokenScores]()
    for start in range(0, len(answers), batch_size):
        batch = answers[start : start + batch_size]
        layout = send_to_device(layout_sequences(batch, pad_id, mode), device)
        with evaluating(policy), autocast():
            mine = scoring.distributions(policy, layout, head)
            scores = [scoring.place(mine.logps(layout["target"]), layout)[0].double().cpu()]
        if reference is not None:
            with reference() as other, evaluating(other), autocast():
                # Its "reference" is the policy here: KL(policy || reference) over the whole vocabulary.
                theirs = scoring.score(other, layout, head=other_head.of(other), reference=mine)
            scores += [scores[0] - theirs["logps"][0].double().cpu(), theirs["kl"][0].double().cpu()]
        for n, answer in enumerate(batch):
            found.append(TokenScores(*(values[n, : len(answer.completion)].tolist() for values in scores)))
    return found


def judge_answers(judge: Judge, answers: list[AnswerRow]) -> None:
    """Gives every answer its verdict, against the row's chosen completion."""
    comparisons = [Comparison(row.prompt, row.answer, row.reference) for row in answers]
    for row, verdict in zip(answers, judge(comparisons), strict=True):
        row.verdict = verdict


def _assembled(
    drawn: Drawn, scores: TokenScores, dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, ends: set[int]
) -> AnswerRow:
    """Returns the row of an answer, from what was drawn, how it scored and how it stood in the data."""
    tokens = drawn.answer.completion
    return AnswerRow(
        drawn.row,
        drawn.sample,
        drawn.source,
        dialogue[0],
        _text(tokenizer, tokens),
        dialogue[1],
        tokens=len(tokens),
        reference_tokens=int(drawn.better.mask.sum()),
        finished=int(tokens[-1]) in ends,
        logp=sum(scores.logps),
        log_ratios=scores.log_ratios,
        token_kl=scores.token_kl,
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, drawn: Drawn) -> Dialogue:
    """Returns prompt and chosen completion from the row's token ids."""
    return _text(tokenizer, drawn.fields["prompt_ids"]), _text(tokenizer, drawn.better.completion)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    text: str = tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)
    return text
