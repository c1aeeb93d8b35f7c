"""Known sicknesses of preference training, found in the log of a run and said in words, with thresholds and sources."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .records import RunRecord, Series

# Thresholds. No paper gives a number for any of these: each is our own choice, for the reason that stands beside it
# in the finding; the papers named there describe the sickness.
CHOSEN_FALL = 0.25  # nats a token
LENGTH_GROWTH = 1.5  # ratio
LENGTH_BIAS = 1.2  # ratio
REWARD_LENGTH = 0.1  # share of pairs of unequal length
SATURATED = 0.99  # share of pairs
GENERALISATION_GAP = 0.1  # share of pairs
MARGIN_GROWTH = 1.25  # ratio over the second half of training
GROUP_GAP = 0.15  # share of pairs
KL_LIMIT = 20.0  # nats an answer
FEWEST_POINTS = 8  # logged values without which a curve has no start and end to compare
WINDOW = 0.1  # share of a curve that is its start, and its end


@dataclass(frozen=True)
class Finding:
    """A sickness that shows: what was seen, the threshold that it passed, and where both come from."""

    name: str
    seen: str
    threshold: str
    source: str


@dataclass(frozen=True)
class NotJudged:
    """A sickness that the log cannot show, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Change:
    """Means of the first and the last tenth of a curve, and the standard error of their difference."""

    start: float
    end: float
    error: float

    @property
    def rise(self) -> float:
        """The difference; negative for a fall."""
        return self.end - self.start

    @property
    def is_clear(self) -> bool:
        """True if the difference is more than two standard errors: batches differ, and that alone moves a curve."""
        return abs(self.rise) > 2 * self.error


def change(series: Series | None, since: float = 0.0) -> Change | None:
    """Compares the ends of a curve, of its part behind the share ``since``; None where it is too short."""
    if series is None:
        return None
    values = series.values[int(len(series.values) * since) :]
    if len(values) < FEWEST_POINTS:
        return None
    size = max(2, round(len(values) * WINDOW))
    first, last = values[:size], values[-size:]
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / size)
    return Change(float(first.mean()), float(last.mean()), error)


def last_window(series: Series) -> float:
    """Returns the mean of the last tenth of a curve."""
    size = max(1, round(len(series.values) * WINDOW))
    return float(np.mean(series.values[-size:]))


def diagnose(run: RunRecord) -> tuple[list[Finding], list[NotJudged]]:
    """Returns the sicknesses that show in a run, and those that its log cannot show."""
    findings: list[Finding] = []
    not_judged: list[NotJudged] = []
    for check in CHECKS:
        for result in check(run):
            (findings if isinstance(result, Finding) else not_judged).append(result)  # type: ignore[arg-type]
    return findings, not_judged


Results = list[Finding | NotJudged]


def displacement(run: RunRecord) -> Results:
    """The margin grows while the chosen completions become much less likely."""
    name = "Chosen completions fall"
    chosen, margin = (change(run.series.get(one)) for one in ("logps_per_token/chosen", "rewards/margins"))
    if chosen is None or margin is None:
        return [NotJudged(name, f"it takes {FEWEST_POINTS} logged values of margin and log-probabilities")]
    if not (margin.rise > 0 and margin.is_clear and chosen.rise <= -CHOSEN_FALL and chosen.is_clear):
        return []
    return [
        Finding(
            name,
            f"The margin grew from {margin.start:.2f} to {margin.end:.2f} while the chosen completions fell from "
            f"{chosen.start:.2f} to {chosen.end:.2f} nats a token: it grew because the rejected ones fell further. The "
            "probability went to completions that are in neither column. A smaller learning rate, a larger beta, or a "
            "loss that holds the chosen completion up (dpop, rpo, cal_dpo) helps.",
            f"the chosen completions lose {CHOSEN_FALL} nats a token, so that each token has at most "
            f"{math.exp(-CHOSEN_FALL):.0%} of its probability left (our choice)",
            "Pal et al. 2024 (Smaug, arXiv:2402.13228); Razin et al. 2024 (arXiv:2410.08847). Some fall is to be "
            "expected behind a supervised start: Rafailov et al. 2024 (arXiv:2404.12358)",
        )
    ]


def length(run: RunRecord) -> Results:
    """Answers grow longer with training, or the data teach that longer is better."""
    source = "Park et al. 2024 (arXiv:2403.19159); Singhal et al. 2023 (arXiv:2310.03716)"
    results: Results = []
    lengths = generated_lengths(run)
    if lengths is None:
        reason = "the model wrote no answers before and after training; it takes an evaluation set and report_samples"
        results.append(NotJudged("Answers grow longer", reason))
    elif lengths[0] > 0 and lengths[1] / lengths[0] >= LENGTH_GROWTH:
        seen = (
            f"Answers to held-out prompts went from {lengths[0]:.0f} to {lengths[1]:.0f} tokens. See whether they say "
            "more: length-desensitised and length-normalised losses (ld_dpo, r_dpo, simpo) hold it back."
        )
        threshold = f"answers {LENGTH_GROWTH} times as long as before (our choice)"
        results.append(Finding("Answers grow longer", seen, threshold, source))
    chosen, rejected = run.series.get("lengths/chosen"), run.series.get("lengths/rejected")
    if chosen and rejected and rejected.values.mean() > 0:
        ratio = float(chosen.values.mean() / rejected.values.mean())
        if ratio >= LENGTH_BIAS:
            seen = (
                f"Chosen completions have {chosen.values.mean():.0f} tokens, rejected ones "
                f"{rejected.values.mean():.0f} (means over the log): a policy can raise the margin by length alone."
            )
            threshold = f"chosen completions {LENGTH_BIAS} times as long as rejected ones (our choice)"
            results.append(Finding("The data prefer length", seen, threshold, source))
    return results + _reward_of_length(run)


def _reward_of_length(run: RunRecord) -> Results:
    """A reward model prefers the longer answer more often than people did."""
    wins, chosen = run.held_out("length/longer_wins"), run.held_out("length/longer_chosen")
    if wins is None or chosen is None or wins - chosen < REWARD_LENGTH:
        return []
    seen = (
        f"Of held-out pairs of unequal length the longer answer has the higher reward in {wins:.0%}, and was chosen in "
        f"{chosen:.0%}: the reward counts words beyond what the labels do."
    )
    threshold = f"{REWARD_LENGTH:.0%} of these pairs more (our choice)"
    return [Finding("The reward prefers length", seen, threshold, "Singhal et al. 2023 (arXiv:2310.03716)")]


def generated_lengths(run: RunRecord) -> tuple[float, float] | None:
    """Returns the mean length of generated answers in tokens, before and after; None where none were generated."""
    rows = run.samples.get("rows") or []
    pairs = [(row["before_tokens"], row["after_tokens"]) for row in rows if row.get("after_tokens") is not None]
    if pairs:
        before, after = (float(np.mean(one)) for one in zip(*pairs, strict=True))
        return before, after
    for name, series in run.series.items():
        if name.endswith("generation/length") and len(series.values) >= 2:
            return float(series.values[0]), float(series.values[-1])
    return None


def saturation(run: RunRecord) -> Results:
    """Every training pair is told apart, and training goes on."""
    name = "Accuracy is saturated"
    accuracy, margin = run.series.get("rewards/accuracies"), run.series.get("rewards/margins")
    if accuracy is None or margin is None or len(accuracy.values) < FEWEST_POINTS:
        return [NotJudged(name, f"it takes {FEWEST_POINTS} logged values of accuracy and margin")]
    train = last_window(accuracy)
    if train < SATURATED:
        return []
    reasons = []
    held_out = run.held_out("rewards/accuracies")
    if held_out is not None and train - held_out >= GENERALISATION_GAP:
        reasons.append(f"on held-out pairs it is {held_out:.1%}")
    late = change(margin, since=0.5)
    if late is not None and late.is_clear and late.start > 0 and late.end / late.start >= MARGIN_GROWTH:
        reasons.append(f"the margin still grew from {late.start:.2f} to {late.end:.2f} in the second half")
    if not reasons:
        return []
    return [
        Finding(
            name,
            f"Accuracy on the training pairs is {train:.1%}, and {' and '.join(reasons)}: what is learnt now is to be "
            "surer of pairs that are told apart already. Fewer epochs, more data, label smoothing or a loss with a "
            "bounded margin (ipo) helps.",
            f"training accuracy of {SATURATED:.0%} in the last tenth of the log, and either held-out accuracy "
            f"{GENERALISATION_GAP:.0%} below it or a margin {MARGIN_GROWTH} times as large at the end as in the middle "
            "(our choice)",
            "Azar et al. 2023 (IPO, arXiv:2310.12036: with deterministic preferences DPO's margin has no "
            "bound, and the KL term loses its hold)",
        )
    ]


def group_behind(run: RunRecord) -> Results:
    """One group of rows is told apart much worse than another."""
    accuracies = group_accuracies(run)
    if len(accuracies) < 2:
        return []
    best, worst = (choose(accuracies, key=lambda one: accuracies[one]) for choose in (max, min))
    if accuracies[best] - accuracies[worst] < GROUP_GAP:
        return []
    return [
        Finding(
            "A group is left behind",
            f"Accuracy is {accuracies[worst]:.1%} on the group {worst}, and {accuracies[best]:.1%} on {best}. If its "
            "rows are few, group_robust or group_dro give them weight; if they are noisy, more weight will not help.",
            f"{GROUP_GAP:.0%} between the best and the worst group (our choice; with few rows in a group, a gap of "
            "this size can be chance)",
            "Sagawa et al. 2020 (group DRO, arXiv:1911.08731); Ramesh et al. 2024 (arXiv:2405.20304)",
        )
    ]


def group_accuracies(run: RunRecord) -> dict[str, float]:
    """Returns group -> accuracy: the last on held-out rows, else the mean of the last tenth of training."""
    for prefix in (*run.evaluation_sets, ""):
        start, end = f"{prefix}group/", "/accuracy"
        names = [one for one in {**run.series, **run.metrics} if one.startswith(start) and one.endswith(end)]
        if names and prefix:
            return {one[len(start) : -len(end)]: run.last(one) or 0.0 for one in sorted(names)}
        if names:
            return {one[len(start) : -len(end)]: last_window(run.series[one]) for one in sorted(names)}
    return {}


def kl_blow_up(run: RunRecord) -> Results:
    """The policy has gone very far from the reference."""
    name = "KL blow-up"
    found = kl_metric(run)
    if found is None:
        return [NotJudged(name, "no KL divergence to the reference was logged")]
    metric, value = found
    if value < KL_LIMIT:
        return []
    return [
        Finding(
            name,
            f"{metric} is {value:.1f} nats an answer at the end. A larger beta, a smaller learning rate or fewer steps "
            "keep the policy near the reference.",
            f"{KL_LIMIT:.0f} nats an answer (our choice): as far from the reference as the best of 1.3 billion of its "
            "answers would be, at log n - (n - 1) / n nats",
            "Gao et al. 2022 (reward over-optimisation, arXiv:2210.10760); Rafailov et al. 2024 (the same in direct "
            "alignment, arXiv:2406.02900)",
        )
    ]


def kl_metric(run: RunRecord) -> tuple[str, float] | None:
    """Returns name and last value of the best measure of KL(policy || reference) that was logged, nats an answer."""
    names = [one for one in {**run.series, **run.metrics} if re.search(r"(^|[_/])kl(_k1)?$", one)]
    names.sort(key=lambda one: ("generation" not in one, not one.startswith("eval_"), one.endswith("k1"), one))
    for name in names:
        value = run.last(name)
        if value is not None:
            return name, value
    return None


def not_finite(run: RunRecord) -> Results:
    """Logged values that are not numbers."""
    if not run.not_finite:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in sorted(run.not_finite.items()))
    seen = f"These metrics were NaN or infinite at some steps, which the curves leave out: {named}."
    return [Finding("Values that are no numbers", seen, "one such value", "they are never right")]


CHECKS: tuple[Callable[[RunRecord], Results], ...] = (
    displacement,
    length,
    saturation,
    group_behind,
    kl_blow_up,
    not_finite,
)
