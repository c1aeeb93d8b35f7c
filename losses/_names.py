"""Names that stand for several methods, or for none that is a loss of a batch, and what to write instead."""

from __future__ import annotations

AMBIGUOUS = {
    "grpo": "group-robust preference optimisation (Ramesh 2024) is 'group_robust'; group relative policy optimisation"
    " (DeepSeekMath) learns from rewards of fresh samples and is no preference loss",
    "rdpo": "robust DPO, for flipped labels (Chowdhury et al. 2024, whose rDPO it is), is 'robust_dpo'; R-DPO, which"
    " penalises length (Park et al. 2024), is 'r_dpo'",
    "mdpo": "DPO on dialogues of several turns (Xiong et al. 2024, M-DPO) is 'm_dpo'; mDPO (Wang et al. 2024) compares"
    " images too, which are not read here; several objectives (Zhou et al. 2024) are 'modpo'",
    "sdpo": "softmax DPO, of the best against several (Chen et al. 2024), is 'softmax_dpo'; stepwise DPO (Kim et al."
    " 2024) is 'dpo' in several runs, each with the last one's model as ref_model_name_or_path; DPO on segments of a"
    " dialogue is not here",
    "step_dpo": "it is 'dpo' on rows that go on from the last step that is right (Lai et al. 2024)",
    "online_dpo": "it learns from fresh samples of the policy, which no trainer here draws; DPO with an offset is"
    " 'odpo'",
    "alpha_dpo": "AlphaDPO (Wu et al. 2024), whose margin adapts to each pair, is not here; 'alphapo' (Gupta et al."
    " 2025) reshapes the reward, and 'beta_dpo' adapts beta",
    "ln_dpo": "DPO on means over tokens is 'sigmoid_norm'; 'ld_dpo' counts the tail of the longer completion for less",
    "dr_dpo": "Dr. DPO (Wu et al. 2024), robust over single pairs, is not here; robust over groups is 'group_robust',"
    " over flipped labels 'robust_dpo'; 'r_dpo' penalises length",
    "dro": "direct reward optimisation (Richemond et al. 2024) learns a value function and is not here;"
    " distributionally robust optimisation over groups is 'group_dro'",
    "simper": "SimPER (Xiao et al. 2025) is not here; 'simpo' is another method",
    "xpo": "exploratory preference optimisation (Xie et al. 2024) learns from judged samples of the policy in every"
    " step, which no trainer here judges",
    "spo": "self-play preference optimisation of Swamy et al. 2024 learns from judged samples, which no trainer here"
    " judges; that of Wu et al. 2024 is 'sppo'",
    "aot_pair": "TRL once called by this name what it and we now call 'aot_unpaired'; the paired form is 'aot'",
    "ppo": "it learns from rewards of fresh samples and is no preference loss",
    "tr_dpo": "it moves the reference of any loss while training and is no loss itself: write sync_ref_model: true"
    " beside the block of the loss",
    "ift": "it mixes predicted tokens into the input embeddings, which is a forward pass and no loss of scored tokens",
    "vaa": "it samples groups and perturbs weights, which is a training loop; its group weighting is 'group_dro'",
}
