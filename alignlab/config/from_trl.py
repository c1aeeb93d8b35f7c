"""TRL's configs, as ``trl dpo --config`` reads them: ScriptArguments, ModelConfig and the trainer's, in one file."""

from __future__ import annotations

from typing import Any

from .account import Account, LossRule, choose, shown_value, sum_of

# Read in TRL 1.16: trl/scripts/utils.py, trl/trainer/*_config.py, trl/experimental/{orpo,cpo}.
DEFAULTS: dict[str, Any] = {
    "beta": 0.1,
    "gradient_checkpointing": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "use_bnb_nested_quant": False,
    "discopop_tau": 0.05,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "cpo_alpha": 1.0,
    "simpo_gamma": 0.5,
    "alpha": 0.0,
    "f_alpha_divergence_coef": 0.5,
    "label_smoothing": 0.0,
}
NUMBERS = {"rpo_alpha", "ld_alpha", "center_rewards_coefficient", "dataset_num_proc", "warmup_ratio"}
BETA = {"beta": "beta"}
SMOOTH = {**BETA, "label_smoothing": "label_smoothing"}
WEIGHTS = {**BETA, "desirable_weight": "desirable_weight", "undesirable_weight": "undesirable_weight"}
SFT: LossRule = ({"name": "sft", "reduction": "token"}, {})
LOSSES: dict[str, dict[str, LossRule]] = {  # trainer -> their loss_type -> ours
    "dpo": {
        "sigmoid": ({"name": "dpo"}, BETA),
        "robust": ({"name": "dpo", "smoothing": "robust"}, SMOOTH),
        "hinge": ({"name": "hinge"}, BETA),
        "ipo": ({"name": "ipo", "normalise": "mean"}, BETA),
        "exo_pair": ({"name": "exo"}, {**BETA, "epsilon": "label_smoothing"}),
        "nca_pair": ({"name": "nca"}, BETA),
        "bco_pair": ({"name": "bco_pair"}, BETA),
        "sppo_hard": ({"name": "sppo", "probabilities": "hard"}, BETA),
        "aot": ({"name": "aot"}, SMOOTH),
        "aot_unpaired": ({"name": "aot", "paired": False}, SMOOTH),
        "apo_zero": ({"name": "apo", "variant": "zero"}, BETA),
        "apo_down": ({"name": "apo", "variant": "down"}, BETA),
        "discopop": ({"name": "discopop"}, {**BETA, "tau": "discopop_tau"}),
        "sigmoid_norm": ({"name": "sigmoid_norm"}, BETA),
        "sft": SFT,
    },
    "kto": {"kto": ({"name": "kto"}, WEIGHTS), "apo_zero_unpaired": ({"name": "apo_zero_unpaired"}, WEIGHTS)},
    "orpo": {"orpo": ({"name": "orpo", "nll_scope": "full"}, BETA)},
    "cpo": {
        "sigmoid": ({"name": "cpo"}, {**SMOOTH, "alpha": "cpo_alpha"}),
        "simpo": ({"name": "simpo"}, {**SMOOTH, "gamma": "simpo_gamma"}),
        "alphapo": ({"name": "alphapo"}, {**BETA, "gamma": "simpo_gamma", "alpha": "alpha"}),
    },
}
LOSSES["reward"] = {"bradley_terry": ({"name": "bradley_terry"}, {"centring": "center_rewards_coefficient"})}
SWITCHED = {"dpo"}  # trainers whose switches bend their losses
NLL_BESIDE = {("cpo", "simpo"), ("cpo", "alphapo")}  # to which CPOTrainer adds cpo_alpha times the likelihood
FIRST = {trainer: next(iter(rules)) for trainer, rules in LOSSES.items()}  # their default loss_type
TELLTALE = {  # keys that one trainer alone has
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), "kto"),
    **dict.fromkeys(("cpo_alpha", "simpo_gamma"), "cpo"),
    "center_rewards_coefficient": "reward",
}
DIFFER: dict[str, dict[str, Any]] = {  # defaults of one trainer that are not ours
    "kto": {"train_sampling_strategy": "sequential"},
    "reward": {"learning_rate": 1e-4},
}
DIVERGENCES = {"reverse_kl": None, "forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}
MODEL = {
    "model_name_or_path": "name_or_path",
    "model_revision": "revision",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "chat_template_path": "chat_template",
}
ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def convert(account: Account, trainer: str | None = None) -> None:
    """Takes over a config of TRL's.

    Args:
        trainer: dpo, kto, orpo, cpo or reward: which of TRL's commands it is for; by default as its keys say, else dpo.
    """
    told = next((one for key, one in TELLTALE.items() if key in account.given), "dpo")
    rules = choose("trainer", trainer or told, LOSSES)
    account.values["loss"] = _loss(account, trainer or told, rules)
    for key, value in DIFFER.get(trainer or told, {}).items():
        if key not in account.given:
            account.write_out(key, key, value, "the default of that trainer")
    _model(account)
    _data(account)
    account.move("gradient_checkpointing", "gradient_checkpointing")
    account.move("dataset_num_proc", "data_workers") if account.get("dataset_num_proc") else None
    if "max_length" in account.given and account.given["max_length"] is None:
        account.put("max_length", None)
        account.tell("max_length", "kept", "null: nothing is cut")
    account.drop("packed rows have no padding", "padding_free", "pad_to_multiple_of", "padding_value")
    account.drop("the loss never holds logits of the prompt", "use_logits_to_keep", "use_liger_loss")
    account.drop("scores of the reference are cached anyway", "precompute_ref_log_probs")
    account.drop("max_length bounds prompt and completion together", "max_prompt_length", "max_completion_length")
    account.drop("write eval_generations: 64 for answers at each evaluation", "generate_during_eval")
    account.drop("activations stay on the device", "activation_offloading")
    account.drop("a matter of TRL's own", "ignore_bias_buffers", "is_encoder_decoder", "lora_task_type")


def _loss(account: Account, trainer: str, rules: dict[str, LossRule]) -> Any:
    named = account.get("loss_type") or FIRST[trainer]
    kinds = [str(one) for one in (named if isinstance(named, list) else [named])]
    weights = account.get("loss_weights") or [1.0] * len(kinds)
    if not isinstance(weights, list) or not all(type(one) in (int, float) for one in weights):
        raise ValueError(f"loss_weights: expected a list of numbers, found {weights!r}")
    if len(weights) != len(kinds):
        raise ValueError(f"loss_weights: {len(weights)} numbers for {len(kinds)} losses")
    chosen = [choose("loss_type", kind, rules) for kind in kinds]
    if trainer in SWITCHED:
        chosen = _varied(account, FIRST[trainer], kinds, chosen)
    parts = [(account.loss(rule), weight) for rule, weight in zip(chosen, weights, strict=True)]
    if NLL_BESIDE & {(trainer, kind) for kind in kinds} and account.get("cpo_alpha"):
        parts.append((account.loss(SFT), account.get("cpo_alpha")))
        text = "CPOTrainer adds so many times the likelihood of the chosen completion: a sum of two losses"
        account.tell("cpo_alpha", "changed", text)
    if trainer in SWITCHED and account.get("rpo_alpha"):
        parts.append((account.loss(SFT), account.get("rpo_alpha")))
        account.tell("rpo_alpha", "changed", "so many times the likelihood of the chosen completion: a sum of losses")
    account.drop("off", "rpo_alpha") if not account.get("rpo_alpha") else None
    made = sum_of(parts)
    account.tell("loss_type", "changed", f"loss.name: {made['name']}")
    account.tell("loss_weights", "changed", "loss.weights")
    if trainer in SWITCHED and FIRST[trainer] in kinds:
        why = "TRL ignores it with sigmoid; loss.label_smoothing works here"
        account.drop(why, "label_smoothing")
    account.drop("not an option of this loss", "label_smoothing", "discopop_tau", "cpo_alpha", "simpo_gamma", "alpha")
    return made


def _varied(account: Account, plain: str, kinds: list[str], chosen: list[LossRule]) -> list[LossRule]:
    """Returns the losses as switches of DPOConfig make them.

    Raises:
        ValueError: a switch bends another loss than the plain one, or two are on: there is no such loss here.
    """
    divergence = account.get("f_divergence_type") not in (None, "reverse_kl")
    on = ["f_divergence_type"] if divergence else []
    on += ["use_weighting"] if account.get("use_weighting") else []
    if account.get("ld_alpha") == 1:
        account.drop("1.0: all tokens count alike, as in the plain loss", "ld_alpha")
    on += ["ld_alpha"] if account.get("ld_alpha") not in (None, 1) else []
    if on and (len(on) > 1 or kinds != [plain]):
        found = ", ".join([*on[1:], *kinds])
        raise ValueError(f"{on[0]}: taken over with loss_type sigmoid alone, which it bends; found {found} beside it")
    return [_variant(account, chosen[0])] if len(chosen) == 1 else chosen


def _variant(account: Account, plain: LossRule) -> LossRule:
    """Returns the loss that a switch of DPOConfig makes of the plain one; a switch that is off changes nothing."""
    found = choose("f_divergence_type", account.get("f_divergence_type") or "reverse_kl", DIVERGENCES)
    if found:
        account.tell("f_divergence_type", "changed", f"loss: f_dpo, divergence {found}")
        return {"name": "f_dpo", "divergence": found}, {**BETA, "alpha": "f_alpha_divergence_coef"}
    account.drop("reverse_kl is plain DPO", "f_divergence_type", "f_alpha_divergence_coef")
    if account.get("use_weighting"):
        account.tell("use_weighting", "changed", "loss: wpo, without the clamp of its official code")
        return {"name": "wpo", "clamp": False}, BETA
    if account.get("ld_alpha") not in (None, 1):
        return {"name": "ld_dpo"}, {**BETA, "alpha": "ld_alpha"}
    account.drop("off, as here", "use_weighting", "ld_alpha")
    return plain


def _model(account: Account) -> None:
    for key, ours in MODEL.items():
        if key in account.given:
            account.move(key, f"model.{ours}")
    if account.get("load_in_4bit"):
        account.move("use_bnb_nested_quant", "model.bnb_4bit_use_double_quant")
    account.drop("its dtype is that of the packed weights", "bnb_4bit_quant_storage")
    if not account.get("use_peft"):
        account.drop("use_peft is off: all weights are trained", "use_peft", "use_bnb_nested_quant", *ADAPTER)
        return
    account.tell("use_peft", "changed", "the block peft")
    for key, ours in ADAPTER.items():
        if key in account.given or key in DEFAULTS:
            account.move(key, f"peft.{ours}")


def _data(account: Account) -> None:
    single = {"path": account.get("dataset_name"), "name": account.get("dataset_config")}
    split = account.get("dataset_train_split") or "train"
    made = []
    for part in account.get("datasets") or [single]:
        one = {"path": part.get("path"), "split": part.get("split") or split}
        named = {"name": part.get("name"), "weight": part.get("fraction")}
        made.append({**one, **{key: value for key, value in named.items() if value is not None}})
    if made[0]["path"] is not None:
        account.put("data.train", made)
        for key in ("dataset_name", "datasets", "dataset_train_split", "dataset_config"):
            account.tell(key, "changed", f"data.train: {shown_value(made)}")
    evaluates = account.get("eval_strategy") not in (None, "no", False)
    test = account.get("dataset_test_split") or "test"
    if evaluates and made[0]["path"] is not None:
        account.put("data.eval", [{**one, "split": test} for one in made])
        text = f"data.eval: the split {test}"
        account.tell("dataset_test_split", "changed", text)
    account.drop("nothing is evaluated", "dataset_test_split")
    account.drop("rows are written to a prepared set first", "dataset_streaming", "streaming")
