"""The formulas of the metrics, on numpy arrays of rows: no model, no file, no collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .ngrams import diversity, self_bleu
from .orders import list_ranking
from .statistics import (
    Figures,
    bootstrap_interval,
    columns,
    correlation,
    ragged,
    ranks,
    sigmoid,
    standard_error,
    wilson_interval,
)

__all__ = [
    "Figures",
    "diversity",
    "group_accuracy",
    "length_exploitation",
    "length_growth",
    "likelihood_displacement",
    "list_ranking",
    "margin_calibration",
    "pair_length_bias",
    "preference_accuracy",
    "self_bleu",
    "sequence_kl",
    "win_rate",
]


def preference_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> Figures:
    """How often the chosen completion has the higher reward.

    accuracy = share of rows with chosen > rejected, strictly: a model that equals its reference scores 0, as in
    training; ``ties`` is the share of equal rewards. ``low`` and ``high`` are the accuracy's 95% Wilson interval.

    Args:
        chosen, rejected: rewards ``[N]``.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.
    """
    one, other = columns(chosen=chosen, rejected=rejected)
    accuracy = float(np.mean(one > other))
    low, high = wilson_interval(accuracy, len(one))
    ties = float(np.mean(one == other))
    return {"accuracy": accuracy, "low": low, "high": high, "ties": ties, "rows": len(one)}


def margin_calibration(margins: ArrayLike, bins: int = 10) -> Figures:
    """How far sigmoid(margin), the Bradley-Terry probability of the label, can be believed.

    Each row is a forecast with confidence c = sigmoid(|m|) that is right if m > 0 and half right if m = 0.
    ece = sum_b n_b / N |right_b - confidence_b| over ``bins`` equal bins of c in [1/2, 1], mce its largest term;
    overconfidence = mean c - mean right; brier = mean (1 - sigmoid(m))^2; nll = mean -log sigmoid(m).

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 3 and 5; Brier 1950.

    Args:
        margins: chosen minus rejected reward ``[N]``.

    Raises:
        ValueError: no rows, a value that is not finite, or less than one bin.
    """
    (margin,) = columns(margins=margins)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    reliability = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            found = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
            edges = {"low": 0.5 + index / bins / 2, "high": 0.5 + (index + 1) / bins / 2}
            reliability.append({**edges, "rows": int(inside.sum()), **found})
    gaps = [(abs(one["accuracy"] - one["confidence"]), one["rows"]) for one in reliability]
    return {
        "margin": float(margin.mean()),
        "ece": sum(gap * rows for gap, rows in gaps) / len(margin),
        "mce": max(gap for gap, _ in gaps),
        "overconfidence": float(confidence.mean() - right.mean()),
        "brier": float(np.mean(sigmoid(-margin) ** 2)),
        "nll": float(np.mean(np.logaddexp(0, -margin))),
        "reliability": reliability,
    }


def group_accuracy(chosen: ArrayLike, rejected: ArrayLike, groups: Sequence[Any]) -> Figures:
    """Preference accuracy and margin of each group, and of the group that is worst off.

    worst_accuracy is the least of the groups' accuracies, group_mean their unweighted mean, gap = accuracy over all
    rows - worst_accuracy. Of equally bad groups the first by name is named.

    Raises:
        ValueError: as ``preference_accuracy``.
    """
    one, other = columns(chosen=chosen, rejected=rejected)
    names = np.array([str(group) for group in groups])
    if len(names) != len(one):
        raise ValueError(f"groups has {len(names)} rows, chosen has {len(one)}")
    parts = {}
    for name in sorted(set(names.tolist())):
        mine = names == name
        parts[name] = preference_accuracy(one[mine], other[mine]) | {"margin": float(np.mean((one - other)[mine]))}
    worst = min(parts, key=lambda name: float(parts[name]["accuracy"]))
    overall = float(np.mean(one > other))
    return {
        "worst_accuracy": parts[worst]["accuracy"],
        "worst_group": worst,
        "group_mean": float(np.mean([part["accuracy"] for part in parts.values()])),
        "gap": overall - parts[worst]["accuracy"],
        "groups": parts,
    }


def sequence_kl(log_ratios: Sequence[ArrayLike], token_kl: Sequence[ArrayLike] | None = None) -> Figures:
    """KL(policy || reference) between distributions of whole answers, from answers that the policy sampled.

    With r_t = log p(y_t | x, y_<t) - log q(y_t | x, y_<t) at the tokens of a sampled answer, three unbiased estimates
    by the chain rule, each the mean over answers of a sum over tokens:
    k1 = sum_t r_t; k3 = sum_t (exp(-r_t) - 1 + r_t), never negative, of less variance where p is near q;
    exact = sum_t KL_t, where KL_t = sum_v p_v (log p_v - log q_v) over the whole vocabulary at the position.
    ``*_error`` are standard errors of the mean over answers, ``per_token`` is k1 (exact where given) over the mean
    number of tokens.

    Source: Schulman 2020, "Approximating KL Divergence".

    Args:
        log_ratios: r_t of each answer, ragged ``[N][T]``.
        token_kl: KL_t of each answer, of the same lengths.

    Raises:
        ValueError: no answers, values that are not finite, or token_kl of other lengths.
    """
    rows = ragged("log_ratios", log_ratios)
    sums = {"k1": [r.sum() for r in rows], "k3": [(np.expm1(-r) + r).sum() for r in rows]}
    if token_kl is not None:
        exact = ragged("token_kl", token_kl)
        if [len(row) for row in exact] != [len(row) for row in rows]:
            raise ValueError("token_kl and log_ratios differ in their numbers of tokens")
        sums["exact"] = [row.sum() for row in exact]
    figures: Figures = {}
    for name, values in sums.items():
        figures[name], figures[f"{name}_error"] = float(np.mean(values)), standard_error(values)
    tokens = sum(map(len, rows))
    best = sums.get("exact", sums["k1"])
    return figures | {"per_token": float(np.sum(best)) / tokens if tokens else float("nan")}


def likelihood_displacement(
    chosen: ArrayLike, ref_chosen: ArrayLike, rejected: ArrayLike, ref_rejected: ArrayLike
) -> Figures:
    """Whether chosen completions became likelier than under the reference, or fell along with the rejected ones.

    With d+ = chosen - ref_chosen and d- = rejected - ref_rejected: their means ``chosen_change`` and
    ``rejected_change``, the shares of rows in which each is below 0, in which both are, and in which d+ < 0 although
    the margin d+ - d- grew ("chosen falls too").

    Source: Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in DPO"; Pal et al. 2024 (DPOP).

    Args:
        chosen, ref_chosen, rejected, ref_rejected: log-probabilities of the completions in nats ``[N]``.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.
    """
    one, ref_one, other, ref_other = columns(
        chosen=chosen, ref_chosen=ref_chosen, rejected=rejected, ref_rejected=ref_rejected
    )
    up, down = one - ref_one, other - ref_other
    return {
        "chosen_change": float(up.mean()),
        "rejected_change": float(down.mean()),
        "chosen_fell": float(np.mean(up < 0)),
        "rejected_fell": float(np.mean(down < 0)),
        "both_fell": float(np.mean((up < 0) & (down < 0))),
        "chosen_fell_margin_grew": float(np.mean((up < 0) & (up > down))),
    }


def length_exploitation(lengths: ArrayLike, rewards: ArrayLike, reference_lengths: ArrayLike | None = None) -> Figures:
    """Whether longer is better: lengths of answers, and how reward goes with length.

    pearson and spearman are correlations of reward with length (nan where either does not vary), slope the least
    squares reward per further token. With ``reference_lengths``: growth = mean length / mean reference length - 1,
    and the share of answers that are longer than their reference.

    Source: Singhal et al. 2023, "A Long Way to Go: Investigating Length Correlations in RLHF".

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.
    """
    length, reward = columns(lengths=lengths, rewards=rewards)
    varies = float(length.var()) > 0
    slope = float(np.mean((length - length.mean()) * (reward - reward.mean())) / length.var()) if varies else np.nan
    figures = {
        "length": float(length.mean()),
        "pearson": correlation(length, reward),
        "spearman": correlation(ranks(length), ranks(reward)),
        "slope": slope,
    }
    return figures if reference_lengths is None else figures | length_growth(length, reference_lengths)


def length_growth(lengths: ArrayLike, reference_lengths: ArrayLike) -> Figures:
    """Returns growth = mean length / mean reference length - 1, and the share of answers longer than their reference.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.
    """
    length, reference = columns(lengths=lengths, reference_lengths=reference_lengths)
    growth = float(length.mean() / reference.mean() - 1) if reference.any() else np.nan
    return {
        "reference_length": float(reference.mean()),
        "growth": growth,
        "longer": float(np.mean(length > reference)),
    }


def pair_length_bias(margins: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike) -> Figures:
    """Whether margins follow length: accuracy where the chosen completion is longer, and where it is shorter.

    ``pearson`` is the correlation of the margin with chosen - rejected length.

    Raises:
        ValueError: no rows, unequal lengths, or a value that is not finite.
    """
    margin, one, other = columns(margins=margins, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    right, longer, shorter = margin > 0, one > other, one < other
    return {
        "chosen_longer": float(longer.mean()),
        "accuracy_chosen_longer": float(right[longer].mean()) if longer.any() else np.nan,
        "accuracy_chosen_shorter": float(right[shorter].mean()) if shorter.any() else np.nan,
        "pearson": correlation(one - other, margin),
    }


def win_rate(outcomes: ArrayLike, resamples: int = 1000, seed: int = 0) -> Figures:
    """Share of comparisons won, ties counting half.

    ``low`` and ``high`` are the 95% Wilson interval (too wide where there are ties), ``bootstrap_low`` and
    ``bootstrap_high`` the 2.5% and 97.5% percentiles of means of resampled comparisons.

    Args:
        outcomes: 1 won, 1/2 tied, 0 lost ``[N]``.

    Raises:
        ValueError: no comparisons, or a value outside of [0, 1].
    """
    (outcome,) = columns(outcomes=outcomes)
    if ((outcome < 0) | (outcome > 1)).any():
        raise ValueError(f"outcomes must be in [0, 1], found {outcome.min()} to {outcome.max()}")
    rate = float(outcome.mean())
    low, high = wilson_interval(rate, len(outcome))
    bootstrap_low, bootstrap_high = bootstrap_interval(outcome, resamples, seed)
    return {
        "win_rate": rate,
        "low": low,
        "high": high,
        "bootstrap_low": bootstrap_low,
        "bootstrap_high": bootstrap_high,
        "wins": int((outcome > 0.5).sum()),
        "ties": int((outcome == 0.5).sum()),
        "losses": int((outcome < 0.5).sum()),
    }
