"""LLaMA-Factory's configs, as ``llamafactory-cli train`` reads them: preference training, stages dpo, kto and rm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .account import Account, LossRule, choose, sum_of
from .parser import Values

# Read in src/llamafactory/hparams/{finetuning,data,model}_args.py of July 2025 and later.
DEFAULTS: dict[str, Any] = {
    "pref_beta": 0.1,
    "simpo_gamma": 0.5,
    "dpo_label_smoothing": 0.0,
    "kto_chosen_weight": 1.0,
    "kto_rejected_weight": 1.0,
    "cutoff_len": 2048,
    "lora_rank": 8,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "learning_rate": 5e-5,  # transformers' own
    "finetuning_type": "lora",
    "dataset_dir": "data",
}
NUMBERS = {"val_size", "pref_ftx", "pref_bco_weight", "ld_alpha", "lora_alpha", "quantization_bit", "moe_aux_loss_coef"}
NUMBERS |= {"preprocessing_num_workers", "lora_rank"}
BETA = {"beta": "pref_beta"}
ORPO = {"name": "orpo", "nll_scope": "completion", "nll_reduction": "example"}
LOSSES: dict[str, LossRule] = {  # pref_loss
    "sigmoid": ({"name": "dpo"}, {**BETA, "label_smoothing": "dpo_label_smoothing"}),
    "hinge": ({"name": "hinge"}, BETA),
    "ipo": ({"name": "ipo", "normalise": "mean"}, BETA),
    "kto_pair": ({"name": "kto_pair"}, BETA),
    "orpo": (ORPO, BETA),
    "simpo": ({"name": "simpo"}, {**BETA, "gamma": "simpo_gamma"}),
}
BESIDE_BCO = {"dpo", "hinge", "ipo", "kto_pair"}  # the losses that read a reference there
KTO = {**BETA, "desirable_weight": "kto_chosen_weight", "undesirable_weight": "kto_rejected_weight"}
STAGES: dict[str, dict[str, LossRule]] = {
    "dpo": LOSSES,
    "kto": {"sigmoid": ({"name": "kto"}, KTO)},
    "rm": {"sigmoid": ({"name": "bradley_terry"}, {})},
}
ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
ENGINES = {  # of examples/deepspeed
    "ds_z2_config.json": "zero2.json",
    "ds_z2_offload_config.json": "zero2_offload.json",
    "ds_z3_config.json": "zero3.json",
    "ds_z3_offload_config.json": "zero3_offload.json",
}
ADAPTER = {
    "lora_rank": "r",
    "lora_dropout": "lora_dropout",
    "additional_target": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
LISTS = {"additional_target"}  # commas between names


def convert(account: Account, trainer: str | None = None) -> None:
    """Takes over a config of LLaMA-Factory's.

    Raises:
        ValueError: a stage or a way of tuning that is none of preference training here.
    """
    if trainer is not None:
        raise ValueError("--trainer: LLaMA-Factory's configs say it themselves, in `stage`")
    rules = choose("stage", account.get("stage"), STAGES)
    loss = account.loss(choose("pref_loss", account.get("pref_loss") or "sigmoid", rules))
    if account.get("ld_alpha") == 1:
        account.drop("1.0: all tokens count alike, as in the plain loss", "ld_alpha")
    elif account.get("ld_alpha") is not None:
        raise ValueError("ld_alpha: there it bends the policy's scores and not the reference's; no loss here does that")
    weight, share = account.get("pref_ftx") or 0.0, account.get("pref_bco_weight") or 0.0
    parts = [(loss, 1 / (1 + share)), ({"name": "bco_pair", "beta": account.get("pref_beta")}, share / (1 + share))]
    if share and loss["name"] not in BESIDE_BCO:
        raise ValueError(f"pref_bco_weight: {share}: it says nothing to {loss['name']} there; leave it out")
    account.values["loss"] = sum_of([*parts, ({"name": "sft", "reduction": "example"}, weight)])
    account.tell("pref_bco_weight", "changed", "a sum with bco_pair, both divided by 1 + it" if share else "0: none")
    account.tell("pref_ftx", "changed", "a weighted sum with sft" if weight else "0: no sft beside the loss")
    account.tell("stage", "changed", f"loss.name: {loss['name']}")
    account.tell("pref_loss", "changed", f"loss.name: {loss['name']}")
    account.drop("not an option of this loss", "dpo_label_smoothing", "simpo_gamma", *list(KTO.values())[1:])
    _model(account)
    _data(account)
    _training(account)


def _model(account: Account) -> None:
    for key, ours in {"model_name_or_path": "name_or_path", "model_revision": "revision"}.items():
        if key in account.given:
            account.move(key, f"model.{ours}")
    if "trust_remote_code" in account.given:
        account.move("trust_remote_code", "model.trust_remote_code")
    if "flash_attn" in account.given:
        chosen = choose("flash_attn", str(account.get("flash_attn")), ATTENTION)
        if chosen:
            account.move("flash_attn", "model.attn_implementation", chosen)
        account.drop("auto: the fastest that fits, as here", "flash_attn")
    bits = account.get("quantization_bit")
    if bits is not None:
        account.move(
            "quantization_bit",
            choose("quantization_bit", bits, {4: "model.load_in_4bit", 8: "model.load_in_8bit"}),
            True,
        )
    if "quantization_type" in account.given:
        account.move("quantization_type", "model.bnb_4bit_quant_type")
    if "double_quantization" in account.given:
        account.move("double_quantization", "model.bnb_4bit_use_double_quant")
    _adapter(account)


def _adapter(account: Account) -> None:
    kind = choose("finetuning_type", account.get("finetuning_type"), {"lora": "peft", "full": ""})
    if not kind:
        account.tell("finetuning_type", "changed", "no block peft: all weights are trained")
        account.drop("all weights are trained", *ADAPTER, "lora_alpha", "lora_target")
        return
    account.tell("finetuning_type", "changed", "the block peft")
    saved = account.get("adapter_name_or_path")
    if saved is not None and not account.get("create_new_adapter"):
        account.move("adapter_name_or_path", "model.adapter", why="training goes on with it")
        account.drop("the saved adapter has its own", *ADAPTER, "lora_alpha", "lora_target", "create_new_adapter")
    else:
        for key, ours in ADAPTER.items():
            if key in account.given or key in DEFAULTS:
                value = account.get(key)
                account.move(key, f"peft.{ours}", _names(value) if key in LISTS else value)
        alpha = account.get("lora_alpha") or 2 * account.get("lora_rank")
        if "lora_alpha" in account.given:
            account.move("lora_alpha", "peft.lora_alpha")
        else:
            account.write_out("lora_alpha", "peft.lora_alpha", alpha, "twice the rank is the default there")
        target = account.get("lora_target")
        account.move("lora_target", "peft.target_modules", "all-linear" if target == "all" else _names(target))
    if account.get("bf16") or account.get("pure_bf16"):
        account.write_out("model.dtype", "model.dtype", "bfloat16", "of the frozen base, as it is loaded there")


def _data(account: Account) -> None:
    account.move("cutoff_len", "max_length")
    folder = Path(str(account.get("dataset_dir")))
    for key, ours in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if account.get(key) is not None:
            sources = [_source(folder, name) for name in _names(account.get(key))]
            account.move(key, ours, sources, f"by {folder / 'dataset_info.json'}")
    account.tell("dataset_dir", "changed", "part of the paths in data")
    account.hold_out("val_size")
    account.drop("the tokenizer's own chat template frames rows; another one: model.chat_template", "template")
    if account.get("enable_thinking") is not None:
        account.move("enable_thinking", "chat_template_kwargs.enable_thinking")
    account.drop("take a part of a set by its weight: {path: ..., weight: 0.1}, a random tenth", "max_samples")
    account.drop("prepared rows are found by their content", "overwrite_cache", "tokenized_path")
    account.drop("rows are packed without padding where the model takes it", "packing", "neat_packing")
    if account.get("preprocessing_num_workers") is not None:
        account.move("preprocessing_num_workers", "data_workers")


def _training(account: Account) -> None:
    account.move("learning_rate", "learning_rate") if "learning_rate" not in account.given else None
    off = bool(account.get("disable_gradient_checkpointing"))
    if "disable_gradient_checkpointing" in account.given:
        account.move("disable_gradient_checkpointing", "gradient_checkpointing", not off)
    elif "gradient_checkpointing" not in account.given:
        account.write_out(
            "disable_gradient_checkpointing", "gradient_checkpointing", True, "on unless switched off there"
        )
    engine = account.get("deepspeed")
    if isinstance(engine, str) and Path(engine).name in ENGINES:
        account.move("deepspeed", "deepspeed", ENGINES[Path(engine).name], "the shipped one of that kind")
    if account.get("moe_aux_loss_coef") is not None:
        account.move("moe_aux_loss_coef", "router_aux_loss_coef")
    if account.get("enable_liger_kernel"):
        account.move("enable_liger_kernel", "use_liger_kernel")
    for key, ours in {"ref_model": "ref_model_name_or_path", "ref_model_adapters": "ref_adapter"}.items():
        if account.get(key) is not None:
            account.move(key, ours)
    account.drop("the report has the curves", "plot_loss")
    account.drop("weights are float32, or those of an adapter", "pure_bf16", "upcast_layernorm")


def _names(text: Any) -> list[str]:
    return [one.strip() for one in text.split(",")] if isinstance(text, str) else list(text or [])


def _source(folder: Path, name: str) -> Values:
    """Returns where a data set of ``dataset_info.json`` lies; a file of its name where there is no such entry."""
    listed, entry = folder / "dataset_info.json", {}
    if listed.is_file():
        entry = json.loads(listed.read_text(encoding="utf-8")).get(name)
        if entry is None:
            raise ValueError(f"dataset: {listed} has no entry {name!r}")
    made: Values = {"path": entry.get("hf_hub_url") or str(folder / (entry.get("file_name") or f"{name}.json"))}
    made |= {ours: entry[theirs] for theirs, ours in {"subset": "name", "split": "split"}.items() if theirs in entry}
    own = {
        ours: theirs
        for ours, theirs in (entry.get("columns") or {}).items()
        if ours in ("prompt", "chosen", "rejected")
    }
    if any(ours != theirs for ours, theirs in own.items()):
        made["columns"] = own
    return made
