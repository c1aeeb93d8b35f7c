"""Names that several papers use for different methods, and what to write instead."""

from __future__ import annotations

AMBIGUOUS = {
    "grpo": "group-robust preference optimisation (Ramesh 2024) is 'group_robust'; group relative policy optimisation"
    " (DeepSeekMath) learns from rewards of fresh samples and is no preference loss",
}
