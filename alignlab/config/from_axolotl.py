"""axolotl's configs: preference training, as ``rl`` says."""

from __future__ import annotations

from typing import Any

from .account import Account, Line, LossRule, choose, sum_of
from .checks import unlike_intervals
from .parser import Values

# Read in src/axolotl/utils/schemas and src/axolotl/core/builders/{base,rl}.py; betas and alphas are TRL's defaults.
DEFAULTS: dict[str, Any] = {
    "rl_beta": 0.1,
    "cpo_alpha": 1.0,
    "kto_desirable_weight": 1.0,
    "kto_undesirable_weight": 1.0,
    "dpo_label_smoothing": 0.0,
    "micro_batch_size": 1,
    "num_epochs": 1.0,
    "lr_scheduler": "cosine",
    "sequence_len": 512,
    "save_total_limit": 4,
    "lora_dropout": 0.0,
}
NUMBERS = {"val_set_size", "evals_per_epoch", "saves_per_epoch", "simpo_gamma", "orpo_alpha", "rpo_alpha", "lora_r"}
NUMBERS |= {"lora_alpha", "warmup_ratio", "eval_batch_size", "dataset_processes", "center_rewards_coefficient"}
BETA = {"beta": "rl_beta"}
KTO = {**BETA, "desirable_weight": "kto_desirable_weight", "undesirable_weight": "kto_undesirable_weight"}
LOSSES: dict[str, LossRule] = {  # rl
    "dpo": ({"name": "dpo"}, {**BETA, "label_smoothing": "dpo_label_smoothing"}),
    "ipo": ({"name": "ipo", "normalise": "mean"}, BETA),
    "kto": ({"name": "kto"}, KTO),
    "orpo": ({"name": "orpo", "nll_scope": "full"}, BETA),
    "simpo": ({"name": "simpo"}, {**BETA, "gamma": "simpo_gamma"}),
    "reward_model": ({"name": "bradley_terry"}, {"centring": "center_rewards_coefficient"}),  # a key of its own there
}
NLL_BESIDE = {"simpo"}  # to which CPOTrainer adds cpo_alpha times the likelihood
SWITCHED = {"dpo"}
SWITCHES: dict[str, LossRule] = {  # keys that make another loss of rl: dpo
    "dpo_norm_loss": ({"name": "sigmoid_norm"}, BETA),
    "dpo_use_weighting": ({"name": "wpo", "clamp": False}, BETA),
    "rpo_alpha": ({"name": "rpo"}, {**BETA, "alpha": "rpo_alpha"}),
}
RENAMED = {
    "base_model": "model.name_or_path",
    "revision_of_model": "model.revision",
    "tokenizer_config": "model.tokenizer",
    "trust_remote_code": "model.trust_remote_code",
    "load_in_4bit": "model.load_in_4bit",
    "load_in_8bit": "model.load_in_8bit",
    "attn_implementation": "model.attn_implementation",
    "eval_batch_size": "per_device_eval_batch_size",
    "optimizer": "optim",
    "dataset_processes": "data_workers",
    "chat_template_jinja": "model.chat_template",
    "wandb_name": "run_name",
}
ALWAYS = {  # written out where they are not given: the defaults differ
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type",
    "sequence_len": "max_length",
}
ATTENTION = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
ADAPTER = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_modules_to_save": "modules_to_save",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_layers_to_transform": "layers_to_transform",
}
TRACKERS = {"use_wandb": "wandb", "wandb_project": "wandb", "use_mlflow": "mlflow", "use_tensorboard": "tensorboard"}
FIELDS = {
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_prompt": "prompt",
    "field_messages": "messages",
}
LEFT_OUT = {
    "what loads a model is found by its config": ("model_type", "tokenizer_type", "is_llama_derived_model"),
    "tokens stand in the tokenizer": ("special_tokens", "tokens", "added_tokens_overrides"),
    "prepared rows are found by their content": ("dataset_prepared_path", "push_dataset_to_hub"),
    "rows are packed without padding where the model takes it": (
        *("sample_packing", "eval_sample_packing", "pad_to_sequence_len", "group_by_length", "dpo_padding_free"),
        *("multipack_real_batches", "dpo_use_logits_to_keep"),
    ),
    "prompts never count in these losses but for ORPO's likelihood": ("train_on_inputs",),
    "scores of the reference are cached anyway": ("precompute_ref_log_probs",),
    "write eval_generations: 64 for answers at each evaluation": ("dpo_generate_during_eval",),
    "keys are always checked strictly": ("strict",),
    "a loss that is not finite stops the run": ("loss_watchdog_threshold", "loss_watchdog_patience"),
    "what an empty line says": ("debug", "local_rank", "xformers_attention", "s2_attention"),
    "of the tracker: set its environment variables": ("wandb_entity", "wandb_watch", "wandb_log_model", "wandb_run_id"),
}


def convert(account: Account, trainer: str | None = None) -> None:
    """Takes over a config of axolotl's.

    Raises:
        ValueError: ``rl`` is none, or one that is no preference training here.
    """
    if trainer is not None:
        raise ValueError("--trainer: axolotl's configs say it themselves, in `rl`")
    account.values["loss"] = _loss(account)
    for key, ours in RENAMED.items():
        if account.get(key) is not None:
            account.move(key, ours)
    for key, ours in ALWAYS.items():
        account.move(key, ours)
    for key, ours in ATTENTION.items():
        if account.get(key):
            account.move(key, "model.attn_implementation", ours)
        account.drop("off", key)
    _adapter(account)
    _data(account)
    _training(account)
    for why, keys in LEFT_OUT.items():
        account.drop(why, *keys)


def _loss(account: Account) -> Values:
    kind = account.get("rl") or ("reward_model" if account.get("reward_model") else None)
    rule = choose("rl", kind, LOSSES, "" if kind else ": it is not preference training")
    for key in ("rl", "reward_model"):
        account.tell(key, "changed", f"loss.name: {rule[0]['name']}")
    beta = (account.get("trl") or {}).get("beta")
    if beta is not None:
        account.drop(f"trl.beta, {beta}, goes before it", "rl_beta", "orpo_alpha")
        account.given["rl_beta"] = beta
        account.tell("trl", "changed", "loss.beta")
    elif "rl_beta" not in account.given and "orpo_alpha" in account.given:
        rule = (rule[0], {"beta": "orpo_alpha"})
    on = [key for key in SWITCHES if account.get(key)]
    if on and (len(on) > 1 or kind not in SWITCHED or account.get("dpo_label_smoothing")):
        found = ", ".join([f"rl: {kind}", *on[1:], f"dpo_label_smoothing: {account.get('dpo_label_smoothing')}"])
        raise ValueError(f"{on[0]}: taken over for plain rl: dpo alone; found {found} beside it")
    for key in on:
        rule = SWITCHES[key]
        account.tell(key, "changed", f"loss.name: {rule[0]['name']}")
    parts = [(account.loss(rule), 1.0)]
    if kind in NLL_BESIDE:
        weight = account.get("cpo_alpha")
        parts.append(({"name": "sft", "reduction": "token"}, weight))
        if "cpo_alpha" in account.given:
            account.tell("cpo_alpha", "changed", "loss.weights" if weight else "0: SimPO alone")
        else:
            why = "TRL's CPOTrainer adds the likelihood of the chosen completion; cpo_alpha: 0.0 is SimPO alone"
            account.lines.append(
                Line("cpo_alpha", "written out", f"{weight} is the default there; loss.weights ({why})")
            )
    options = ("cpo_alpha", *KTO.values(), "dpo_label_smoothing", "orpo_alpha", "simpo_gamma")
    account.drop("not an option of this loss, or off", *options, *SWITCHES)
    return sum_of(parts)


def _adapter(account: Account) -> None:
    kinds = {"lora": True, "qlora": True, None: False, "": False}
    if not choose("adapter", account.get("adapter"), kinds):
        account.drop("all weights are trained", "adapter", *ADAPTER, "lora_target_linear", "lora_target_modules")
        account.drop("all weights are trained", "lora_model_dir", "lora_fan_in_fan_out")
        return
    account.tell("adapter", "changed", "the block peft")
    if account.get("lora_model_dir"):
        account.move("lora_model_dir", "model.adapter", why="training goes on with it")
        account.drop("the saved adapter has its own", *ADAPTER, "lora_target_linear", "lora_target_modules")
        return
    for key, ours in ADAPTER.items():
        if account.get(key) is not None and (key in account.given or key in DEFAULTS):
            account.move(key, f"peft.{ours}")
    if account.get("lora_target_linear"):
        account.move("lora_target_linear", "peft.target_modules", "all-linear")
    elif account.get("lora_target_modules"):
        account.move("lora_target_modules", "peft.target_modules")
    account.drop("off", "lora_target_linear", "lora_target_modules", "lora_fan_in_fan_out", "lora_model_dir", *ADAPTER)
    if account.get("bf16") is not False:
        account.write_out("model.dtype", "model.dtype", "bfloat16", "of the frozen base, as it is loaded there")


def _data(account: Account) -> None:
    if account.get("datasets"):
        account.move("datasets", "data.train", _sources(account.get("datasets")), "without their types")
    if account.get("test_datasets"):
        account.move("test_datasets", "data.eval", _sources(account.get("test_datasets")))
    account.hold_out("val_set_size")
    account.drop("the tokenizer's own chat template frames rows; another one: model.chat_template", "chat_template")


def _sources(given: list[Values]) -> list[Values]:
    """Returns their data sets as parts of a mixture, a part each file."""
    found = []
    for one in given:
        files = one.get("data_files")
        some = files if isinstance(files, list) else [files]
        if not all(file is None or isinstance(file, str) for file in some):
            raise ValueError(f"datasets: data_files: expected a file or a list of files, found {files!r}")
        found += [_source(one, file) for file in some]
    return found


def _source(given: Values, file: str | None) -> Values:
    """Returns one of their data sets as a part of a mixture; a file goes before the name of a reader such as json."""
    made: Values = {"path": given["path"] if file is None else file}
    if file is None or given.get("split") not in (None, "train"):
        made |= {key: given[key] for key in ("split", "name") if given.get(key)}
    kind = given.get("type")
    columns = {**given, **(kind if isinstance(kind, dict) else {})}
    renamed = {ours: columns[theirs] for theirs, ours in FIELDS.items() if columns.get(theirs) not in (None, ours)}
    return {**made, **({"columns": renamed} if renamed else {})}


def _training(account: Account) -> None:
    epochs = account.get("num_epochs")
    if not isinstance(epochs, (int, float)) or not epochs > 0:
        raise ValueError(f"num_epochs: expected a number above 0, found {epochs!r}")
    for key, strategy, steps in (
        ("evals_per_epoch", "eval_strategy", "eval_steps"),
        ("saves_per_epoch", "save_strategy", "save_steps"),
    ):
        times = account.get(key)
        if times and times * epochs <= 1:  # a share of 1 and more would be taken for a number of steps
            account.move(key, strategy, "epoch")
        elif times:
            account.put(strategy, "steps")
            account.move(key, steps, round(1 / (times * epochs), 6), "a share of all steps")
        account.drop("never", key)
    if account.get("eval_steps") and "eval_strategy" not in account.given:
        account.write_out("eval_strategy", "eval_strategy", "steps", "as eval_steps says there")
    if not {"save_steps", "save_strategy", "saves_per_epoch"} & account.given.keys():
        account.write_out("save_strategy", "save_strategy", "epoch", "the default there")
    account.move("save_total_limit", "save_total_limit")
    if account.get("warmup_ratio") is not None:
        account.move("warmup_ratio", "warmup_steps", why="below 1 it is a share of all steps")
    elif not account.get("warmup_steps"):
        account.write_out("warmup_steps", "warmup_steps", 0.03, "3 % of all steps there, at most 100")
    if account.get("load_best_model_at_end") and (why := unlike_intervals(account.values | account.left)):
        account.drop(f"{why}; there it is off then", "load_best_model_at_end")
    named = dict.fromkeys(one for key, one in TRACKERS.items() if account.get(key))
    if named:
        account.put("report_to", list(named))
    for key in TRACKERS:
        account.tell(
            key, "changed" if account.get(key) else "no counterpart", "report_to" if account.get(key) else "off"
        )
    if account.get("early_stopping_patience"):
        account.drop(
            "no stop on evaluation: save_total_limit and load_best_model_at_end keep the best",
            "early_stopping_patience",
        )
    if isinstance(account.get("fsdp"), list):
        account.move("fsdp", "fsdp", " ".join(map(str, account.get("fsdp"))))
    engine = str(account.get("deepspeed") or "")
    shipped = {"zero1.json", "zero2.json", "zero3.json"} & {engine.rsplit("/", 1)[-1].replace("_bf16", "")}
    if shipped:
        account.move("deepspeed", "deepspeed", shipped.pop(), "the shipped one of that stage")
