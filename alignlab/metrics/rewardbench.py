"""The scores of RewardBench 2: the best of four answers, and its weighted score of ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .statistics import Figures


def best_of(correct: Sequence[float], wrong: Sequence[float]) -> float:
    """How well the correct answer beats all wrong ones: 1, or 1/k where it shares the first place with k - 1 others.

    Source: Malik et al. 2025, "RewardBench 2", arXiv:2506.01937, section 3; ``reroll_and_score_dataset`` of its code.

    Raises:
        ValueError: not one correct answer, or none that is wrong.
    """
    if len(correct) != 1 or not wrong:
        raise ValueError(f"best_of reads one correct answer and wrong ones, found {len(correct)} and {len(wrong)}")
    scores = [*correct, *wrong]
    best = max(scores)
    return 1 / scores.count(best) if correct[0] == best else 0.0


def ties(
    reference: Mapping[int, tuple[Sequence[float], Sequence[float]]],
    tied: Mapping[int, tuple[Sequence[float], Sequence[float]]],
) -> Figures:
    """The weighted score of prompts that have many equally correct answers.

    With m = min correct - max wrong of a prompt and s = max correct - min correct of its tied form:
    ``0.3 mean(m_tied > 0) + 0.3 mean(m_ref > 0) + 0.2 mean(m_tied > s) + 0.2 mean(min(m_ref, m_tied) > s)
    + 0.01 mean tanh(min(m_ref, m_tied) / s - 1)``, where 0/0 counts as 0. The first two are means over all prompts of a
    kind, the others over prompts that have both. The best score is 1.01.

    Source: Malik et al. 2025, arXiv:2506.01937, appendix; ``process_single_model`` of github.com/allenai/reward-bench.

    Args:
        reference: prompt -> rewards of its one correct answer and of the wrong ones.
        tied: prompt -> rewards of all correct answers, at least two, and of the wrong ones.

    Raises:
        ValueError: no prompt has both forms, or an answer is missing.
    """
    shared = sorted(reference.keys() & tied.keys())
    if not shared:
        raise ValueError("ties: no prompt has a reference row and a tied row")
    for name, rows, least in (("reference", reference, 1), ("tied", tied, 2)):
        for prompt, (correct, wrong) in rows.items():
            if len(correct) < least or not wrong:
                raise ValueError(f"ties: {name} prompt {prompt} has {len(correct)} correct and {len(wrong)} wrong")
    margin = [{prompt: min(good) - max(bad) for prompt, (good, bad) in rows.items()} for rows in (reference, tied)]
    spread = np.array([max(tied[prompt][0]) - min(tied[prompt][0]) for prompt in shared])
    easy, hard = (np.array([one[prompt] for prompt in shared]) for one in margin)
    both = np.minimum(easy, hard)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(both / spread - 1), nan=0.0)
    found = {
        "tied_accuracy": float(np.mean([one > 0 for one in margin[1].values()])),
        "reference_accuracy": float(np.mean([one > 0 for one in margin[0].values()])),
        "preferred": float(np.mean(hard > spread)),
        "preferred_hard": float(np.mean(both > spread)),
        "closeness": float(np.mean(closeness)),
    }
    weights = (0.3, 0.3, 0.2, 0.2, 0.01)
    return {"score": sum(w * value for w, value in zip(weights, found.values(), strict=True)), **found}
