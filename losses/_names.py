"""Names that stand for several methods, or for none that is a loss of a batch, and what to write instead."""

from __future__ import annotations

AMBIGUOUS = {
    "grpo": "group-robust preference optimisation (Ramesh 2024) is 'group_robust'; group relative policy optimisation"
    " (DeepSeekMath) learns from rewards of fresh samples and is no preference loss",
    "hypo": "Song et al. 2024 is DPO plus a KL term on fresh samples, which no trainer here draws; Yuan et al. 2026 is"
    " 'hybrid_dpo'",
    "aot_pair": "TRL once called by this name what it and we now call 'aot_unpaired'; the paired form is 'aot'",
    "ppo": "it learns from rewards of fresh samples and is no preference loss",
    "tr_dpo": "it moves the reference of any loss while training and is no loss itself: write sync_ref_model: true"
    " beside the block of the loss",
    "ift": "it mixes predicted tokens into the input embeddings, which is a forward pass and no loss of scored tokens",
    "vaa": "it samples groups and perturbs weights, which is a training loop; its group weighting is 'group_dro'",
}
