"""The figures of scored pairs and of sampled answers, in sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignlab.judges import DISAGREE
from alignlab.metrics import Figures, formulas, standard_error

from .answers import AnswerRow
from .pairs import PairRow


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
