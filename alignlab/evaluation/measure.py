"""Held-out pairs and sampled answers, scored row by row under policy and reference, and the figures of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from alignlab import models, scoring
from alignlab.data import Mode, ScoredSequence, layout_fields, layout_sequences, sequence
from alignlab.judges import DISAGREE, Comparison, Judge, Prompt, Verdict
from alignlab.metrics import Figures, formulas, standard_error
from alignlab.runtime import evaluating, unwrap
from alignlab.sampling import end_tokens, sample_answers
from alignlab.scoring import head_of

Runner = Callable[[], AbstractContextManager[nn.Module]]  # yields a frozen model, ready to score
SEED_STRIDE = 1_000_003  # seeds of the answers of one run do not meet those of the next


@dataclass
class PairRow:
    """One held-out pair: log-probabilities in nats over the tokens that count, and how many those are."""

    row: int
    source: str
    group: str | None
    chosen_logp: float
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int
    ref_chosen_logp: float | None = None
    ref_rejected_logp: float | None = None


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


# ---- shares of ranks ---------------------------------------------------------------------------------------------


def share(count: int) -> list[int]:
    """Returns the rows of this rank, as many on every rank: where rows run out, the first ones come again."""
    state = PartialState()
    each = -(-count // state.num_processes)
    return [(index * state.num_processes + state.process_index) % count for index in range(each)]


def gathered(rows: Sequence[Any], key: Callable[[Any], Any]) -> list[Any]:
    """Returns the rows of all ranks in the order of their keys, each once, on every rank."""
    found = {key(row): row for row in gather_object(list(rows))}
    return [found[name] for name in sorted(found)]


# ---- pairs -------------------------------------------------------------------------------------------------------


def score_pairs(
    policy: nn.Module,
    dataset: Any,
    pad_id: int,
    reference: nn.Module | None = None,
    *,
    batch_size: int = 8,
    mode: Mode = "padded",
    progress: bool = False,
) -> list[PairRow]:
    """Returns every pair of a tokenised dataset, scored under policy and reference, on every rank.

    ``mode`` is a layout that both models take: ``packing_probe.choose_layout`` finds the best.
    """
    columns, mine = dataset.column_names, share(len(dataset))
    rows = dataset.with_format("numpy")
    scorers = [policy] if reference is None else [policy, reference]
    heads = [head_of(one) for one in scorers]
    found = []
    for start in tqdm(range(0, len(mine), batch_size), desc="pairs", disable=not progress):
        indices = mine[start : start + batch_size]
        batch = [rows[index] for index in indices]
        fields = {name: [sequence(row, name) for row in batch] for name in ("chosen", "rejected")}
        placed = _moved(layout_fields(fields, pad_id, mode), policy)
        sums = []
        for model, head in zip(scorers, heads, strict=True):
            with evaluating(model):
                sums.append(scoring.score(model, placed, head=head)["logps"].double().sum(-1).tolist())
        tokens = placed["mask"].sum(-1).tolist()
        for n, index in enumerate(indices):
            group = str(batch[n]["group"]) if "group" in columns else None
            ref = [] if len(sums) == 1 else [sums[1][0][n], sums[1][1][n]]
            counts = tokens[0][n], tokens[1][n]
            found.append(PairRow(index, str(batch[n]["source"]), group, sums[0][0][n], sums[0][1][n], *counts, *ref))
    return gathered(found, lambda row: row.row)


def pair_figures(rows: Sequence[PairRow], beta: float) -> Figures:
    """Returns the figures of held-out pairs in sections.

    The reward is beta (log p - log q) where a reference was scored, else beta log p, summed over tokens: "preference"
    is its accuracy, "calibration" that of its margin, "length" how it goes with length, "groups" every group's figures
    and "group" the worst's.
    "likelihood" compares log p alone, summed and per token; "displacement" needs the reference.
    """
    chosen, rejected = _column(rows, "chosen_logp"), _column(rows, "rejected_logp")
    tokens = _column(rows, "chosen_tokens"), _column(rows, "rejected_tokens")
    good, bad = beta * chosen, beta * rejected
    has_reference = rows[0].ref_chosen_logp is not None
    if has_reference:
        ref_chosen, ref_rejected = _column(rows, "ref_chosen_logp"), _column(rows, "ref_rejected_logp")
        good, bad = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    per_token = chosen / np.maximum(tokens[0], 1), rejected / np.maximum(tokens[1], 1)
    figures: Figures = {
        "preference": formulas.preference_accuracy(good, bad),
        "likelihood": {
            "accuracy": formulas.preference_accuracy(chosen, rejected)["accuracy"],
            "accuracy_per_token": formulas.preference_accuracy(*per_token)["accuracy"],
            "chosen": float(chosen.mean()),
            "rejected": float(rejected.mean()),
        },
        "calibration": formulas.margin_calibration(good - bad),
        "length": formulas.pair_length_bias(good - bad, *tokens),
    }
    if has_reference:
        figures["displacement"] = formulas.likelihood_displacement(chosen, ref_chosen, rejected, ref_rejected)
    if rows[0].group is not None:
        found = formulas.group_accuracy(good, bad, [row.group for row in rows])
        figures |= {"groups": found.pop("groups"), "group": found}
    return figures


# ---- answers -----------------------------------------------------------------------------------------------------


def first_of_each_prompt(dataset: Any, count: int) -> list[int]:
    """Returns the rows that first hold each of the first ``count`` different prompts; of labelled rows, good ones."""
    places: dict[bytes, int] = {}
    good = dataset["label"] if "label" in dataset.column_names else [True] * len(dataset)
    for index, ids in enumerate(dataset.with_format("numpy")["prompt_ids"]):
        if good[index]:
            places.setdefault(np.asarray(ids, dtype=np.int64).tobytes(), index)
        if len(places) == count:
            break
    return list(places.values())


def answer_rows(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    count: int,
    dialogues: Callable[[str], tuple[Prompt, str] | None],
    reference: Runner | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    mode: Mode = "padded",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[AnswerRow]:
    """Returns sampled answers to the first ``count`` different prompts of a tokenised dataset, on every rank.

    Each answer has a seed of its own, so that the same are drawn whatever the batch size and the number of ranks.

    Args:
        dialogues: prompt and chosen completion as they stood in the data, by the row's source; None: decode the ids.
        reference: yields the reference, for the divergence from it.
        samples: answers a prompt.
    """
    prompts = first_of_each_prompt(dataset, count)
    mine = [divmod(index, samples) for index in share(len(prompts) * samples)]
    rows = [dataset.with_format("numpy")[prompts[prompt]] for prompt, _ in mine]
    seeds = [seed * SEED_STRIDE + prompts[prompt] * samples + sample for prompt, sample in mine]
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with autocast():
        answers = sample_answers(policy, tokenizer, [row["prompt_ids"] for row in rows], seeds, **options)
    pad = models.pad_token_id(tokenizer)
    scored = _score_answers(policy, reference, answers, pad, batch_size, mode, autocast)
    better = "chosen" if "chosen_ids" in dataset.column_names else "completion"
    ends, found = end_tokens(unwrap(policy), tokenizer), []
    for (prompt, sample), row, answer, (logps, ratios, kl) in zip(mine, rows, answers, scored, strict=True):
        known = dialogues(str(row["source"]))
        text, gold = known or (_text(tokenizer, row["prompt_ids"]), _text(tokenizer, row[f"{better}_ids"]))
        length = len(answer.completion)
        found.append(
            AnswerRow(
                prompts[prompt],
                sample,
                str(row["source"]),
                text,
                _text(tokenizer, answer.completion),
                gold,
                tokens=length,
                reference_tokens=int(np.sum(row[f"{better}_mask"])),
                finished=int(answer.completion[-1]) in ends,
                logp=sum(logps),
                log_ratios=ratios,
                token_kl=kl,
            )
        )
    return gathered(found, lambda row: (row.row, row.sample))


def _score_answers(
    policy: nn.Module,
    reference: Runner | None,
    answers: Sequence[ScoredSequence],
    pad: int,
    batch_size: int,
    mode: Mode,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[tuple[list[float], list[float], list[float]]]:
    """Returns of each answer, token by token: log p, log p - log q, and KL(p || q) over the whole vocabulary."""
    head, other_head, found = head_of(policy), None, []
    for start in range(0, len(answers), batch_size):
        batch = answers[start : start + batch_size]
        placed = _moved(layout_sequences(batch, pad, mode), policy)
        with evaluating(policy), autocast():
            mine = scoring.distributions(policy, placed, head)
            logps = scoring.place(mine.logps(placed["target"]), placed)[0].double().cpu()
        ratios, kl = torch.zeros_like(logps), torch.zeros_like(logps)
        if reference is not None:
            with reference() as other, evaluating(other), autocast():
                other_head = other_head or head_of(other)
                # Its "reference" is the policy here: KL(policy || reference) over the whole vocabulary.
                theirs = scoring.score(other, placed, head=other_head, reference=mine)
            ratios = logps - theirs["logps"][0].double().cpu()
            kl = theirs["kl"][0].double().cpu()
        for n, answer in enumerate(batch):
            end = len(answer.completion)
            parts = [values[n, :end].tolist() for values in (logps, ratios, kl)]
            found.append((parts[0], *(parts[1:] if reference is not None else ([], []))))
    return found  # type: ignore[return-value]


def comparisons(rows: Sequence[AnswerRow]) -> list[Comparison]:
    """Returns what a judge is asked: each answer against the row's chosen completion."""
    return [Comparison(row.prompt, row.answer, row.reference) for row in rows]


def answer_figures(rows: Sequence[AnswerRow]) -> Figures:
    """Returns the figures of sampled answers in sections: length, diversity, and what is known of kl, win, reward.

    "diversity" is over all answers, "diversity_within" over the answers of each prompt where there are several.
    "win" counts judged answers only; ``unjudged`` says how many were not, ``disagreed`` in how many a judge that was
    asked in both orders contradicted itself.
    """
    lengths, texts = _column(rows, "tokens"), [row.answer for row in rows]
    figures: Figures = {
        "length": {
            "tokens": float(lengths.mean()),
            **formulas.length_growth(lengths, _column(rows, "reference_tokens")),
            "finished": float(_column(rows, "finished").mean()),
        },
        "diversity": formulas.diversity(texts),
        "logp": float(_column(rows, "logp").mean()),
    }
    if any(row.sample for row in rows):
        figures["diversity_within"] = formulas.diversity(texts, [row.row for row in rows])
    if any(row.log_ratios for row in rows):
        figures["kl"] = formulas.sequence_kl([row.log_ratios for row in rows], [row.token_kl for row in rows])
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    outcomes = [one.outcome for one in verdicts if one.outcome is not None]
    if verdicts:
        asked = {"unjudged": len(verdicts) - len(outcomes), "disagreed": sum(one.note == DISAGREE for one in verdicts)}
        figures["win"] = (formulas.win_rate(outcomes) if outcomes else {}) | asked
    rewarded = [row for row in rows if row.verdict is not None and row.verdict.reward is not None]
    if rewarded:
        rewards = [row.verdict.reward for row in rewarded if row.verdict and row.verdict.reward is not None]
        against = formulas.length_exploitation(_column(rewarded, "tokens"), rewards)
        figures["reward"] = {
            "mean": float(np.mean(rewards)),
            "error": standard_error(rewards),
            **{f"length_{name}": against[name] for name in ("pearson", "spearman", "slope")},
        }
    return figures


def flat(figures: Figures, prefix: str = "") -> dict[str, float]:
    """Returns the defined numbers of nested figures under names such as "length/growth"."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and np.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def _column(rows: Sequence[Any], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([getattr(row, name) for row in rows], dtype=np.float64)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    text: str = tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)
    return text


def _moved(layout: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in layout.items()}


def judge_answers(judge: Judge, answers: list[AnswerRow]) -> None:
    """Gives every answer its verdict."""
    for row, verdict in zip(answers, judge(comparisons(answers)), strict=True):
        row.verdict = verdict
