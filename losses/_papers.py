"""The papers of the losses as BibTeX, from what the docstrings cite."""

from __future__ import annotations

import re

# Titles of what the docstrings cite, by arXiv number; an entry without one has its number for a title.
TITLES = {
    "1911.08731": "Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for "
    "Worst-Case Generalization",
    "2203.02155": "Training language models to follow instructions with human feedback",
    "2304.05302": "RRHF: Rank Responses to Align Language Models with Human Feedback without tears",
    "2305.10425": "SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    "2305.18290": "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "2306.17492": "Preference Ranking Optimization for Human Alignment",
    "2309.06657": "Statistical Rejection Sampling Improves Preference Optimization",
    "2309.16240": "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    "2307.09288": "Llama 2: Open Foundation and Fine-Tuned Chat Models",
    "2310.03708": "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
    "2310.12036": "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    "2401.01335": "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
    "2401.08417": "Contrastive Preference Optimization:"
    " Pushing the Boundaries of LLM Performance in Machine Translation",
    "2402.00856": "Towards Efficient Exact Optimization of Language Model Alignment",
    "2402.01306": "KTO: Model Alignment as Prospect Theoretic Optimization",
    "2402.01878": "LiPO: Listwise Preference Optimization through Learning-to-Rank",
    "2402.05369": "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    "2402.10571": "Direct Preference Optimization with an Offset",
    "2402.13228": "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    "2403.00409": "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    "2403.07691": "ORPO: Monolithic Preference Optimization without Reference Model",
    "2403.19159": "Disentangling Length from Quality in Direct Preference Optimization",
    "2404.04656": "Binary Classifier Optimization for Large Language Model Alignment",
    "2404.11999": "Token-level Direct Preference Optimization",
    "2404.19733": "Iterative Reasoning Preference Optimization",
    "2405.00675": "Self-Play Preference Optimization for Language Model Alignment",
    "2405.14734": "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    "2405.16436": "Provably Mitigating Overoptimization in RLHF:"
    " Your SFT Loss is Implicitly an Adversarial Regularizer",
    "2405.20304": "Group Robust Preference Optimization in Reward-free RLHF",
    "2406.01462": "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
    "2406.05882": "Distributional Preference Alignment of LLMs via Optimal Transport",
    "2406.08414": "Discovering Preference Optimization Algorithms with and for Large Language Models",
    "2406.09215": "On Softmax Direct Preference Optimization for Recommendation",
    "2406.11827": "WPO: Enhancing RLHF with Weighted Preference Optimization",
    "2407.13399": "Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization"
    " via Chi-Squared Preference Optimization",
    "2408.06266": "Anchored Preference Optimization and Contrastive Revisions:"
    " Addressing Underspecification in Alignment",
    "2409.02392": "Building Math Agents with Multi-Turn Iterative Preference Learning",
    "2409.10571": "ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood",
    "2411.15124": "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
    "2412.14516": "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
    "2412.15244": "MPPO: Multi Pair-wise Preference Optimization for LLMs with Arbitrary Negative Samples",
    "2501.03884": "AlphaPO: Reward Shape Matters for LLM Alignment",
}
_CITED = re.compile(r"([A-Z][\w'’-]+)( et al\.| and [A-Z][\w'’-]+)? (\d{4})(?: \([^)]*\))?, arXiv:(\d{4}\.\d{4,5})")


def bibtex(source: str) -> str:
    """Returns a BibTeX entry for every arXiv paper in the ``Source:`` of a loss, in the order of the text.

    Authors stand as they are cited there: the first, and "others".
    """
    entries = []
    for first, more, year, number in dict.fromkeys(_CITED.findall(source)):
        authors = f"{first} and others" if "et al" in more else f"{first}{more}"
        entries.append(
            f"@misc{{{re.sub(r'[^a-z]', '', first.lower())}{year}_{number.replace('.', '_')},\n"
            f"  author = {{{authors}}},\n"
            f"  title = {{{{{TITLES.get(number, f'arXiv:{number}')}}}}},\n"
            f"  year = {{{year}}},\n"
            f"  eprint = {{{number}}},\n"
            f"  archivePrefix = {{arXiv}},\n"
            f"  url = {{https://arxiv.org/abs/{number}}}\n}}"
        )
    return "\n".join(entries)
