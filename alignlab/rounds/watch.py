"""What a round's model is like on prompts that are never trained on, and whether the loop should end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from alignlab import models
from alignlab.answers import AnswerRow, read_answers
from alignlab.config import ModelOptions
from alignlab.data import ScoredSequence
from alignlab.evaluation import sequence_kl
from alignlab.judges import judge_answers
from alignlab.metrics import formulas
from alignlab.runtime import is_main
from alignlab.sampling import Sampled, sample

from .config import STOPPING, RoundsConfig
from .stages import ANSWERS, Stage


def watch(stage: Stage, others: Sequence[str], model: str) -> dict[str, Any]:
    """Answers the held-out prompts, has them judged, and measures KL(model || other) exactly at each token.

    Args:
        others: the start, and the model of the round before.

    Returns:
        means and standard errors of the scores by judge, KL to both in nats an answer, length, diversity, and how many
        answers ended.
    """
    loop, stop = stage.loop, stage.loop.stop
    assert stop is not None
    drawn, output = stage.folder / "drawn.jsonl", stage.folder / ANSWERS
    options = replace(loop.sample_options(stage.round + 1), samples=stop.samples, seed=loop.seed + 1)
    asked = Sampled(
        model=ModelOptions(model, dtype=loop.sample.dtype), prompts=stop.prompts, output=drawn, options=options
    )
    sample(asked)
    judge_answers(drawn, {STOPPING: stop.judge, **loop.judge}, output=output)
    rows = list(read_answers(output))
    found: dict[str, Any] = {"scores": scores_of(rows), **shape_of(rows)}
    for name, other in zip(("start", "previous"), others, strict=True):
        found[f"kl_{name}"] = 0.0 if other == model or not is_main() else _kl(model, other, rows, loop)
    return found


def scores_of(rows: Sequence[AnswerRow]) -> dict[str, dict[str, float | int | None]]:
    """Returns mean and standard error of the scores of each judge over what it judged, and how much that was not."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        for one in row.answers:
            for name, score in one.scores.items():
                found.setdefault(name, []).append(score)
    figures: dict[str, dict[str, float | int | None]] = {}
    for name, all_scores in sorted(found.items()):
        scores = np.array([one for one in all_scores if one is not None], dtype=np.float64)
        error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
        mean = float(scores.mean()) if len(scores) else None
        figures[name] = {"mean": mean, "error": error, "unjudged": len(all_scores) - len(scores)}
    return figures


def shape_of(rows: Sequence[AnswerRow]) -> dict[str, Any]:
    """Returns what answers look like: their mean length in tokens, how many ended, how diverse they are."""
    answers = [one for row in rows for one in row.answers]
    texts = [one.text for one in answers]
    return {
        "answers": len(answers),
        "tokens": float(np.mean([len(one.ids or ()) for one in answers])),
        "finished": float(np.mean([bool(one.finished) for one in answers])),
        "diversity": formulas.diversity(texts),
    }


def _kl(model: str, other: str, rows: Sequence[AnswerRow], loop: RoundsConfig) -> float:
    """Returns the mean over answers of sum_t KL(model || other) at token t over the whole vocabulary."""
    options = [ModelOptions(path, dtype=loop.sample.dtype) for path in (model, other)]
    device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    one, two = (models.load_model(option).requires_grad_(False).eval().to(device) for option in options)
    pad = models.pad_token_id(models.load_tokenizer(options[0]))
    sequences = [
        ScoredSequence(np.asarray(row.prompt_ids), np.asarray(answer.ids), np.ones(len(answer.ids), dtype=bool))
        for row in rows
        for answer in row.answers
        if answer.ids
    ]
    return round(float(sequence_kl(one, two, sequences, pad).double().mean()), 6)


def stopped(loop: RoundsConfig, round_: int) -> str:
    """Returns why the loop ends after a round, as the watch of it and of the rounds before says; empty to go on."""
    if loop.stop is None or round_ < 1:
        return ""
    seen = [Stage(loop, number, "watch").made.account for number in range(round_ + 1)]
    if not all(seen):
        return ""
    kl, most = float(seen[-1]["kl_start"]), loop.stop.max_kl
    if most is not None and kl > most:
        return f"KL to the start is {kl:.2f} nats an answer, over stop.max_kl {most:g}"
    means = [one["scores"][STOPPING]["mean"] for one in seen]
    patience = loop.stop.patience
    best = max(range(len(means)), key=lambda number: -np.inf if means[number] is None else means[number])
    if patience is not None and len(means) - 1 - best >= patience:
        return f"the best held-out score, {means[best]:.3f}, is that of round {best}, {patience} rounds ago"
    return ""
