"""Configs of TRL, LLaMA-Factory and axolotl, written in their own schemas, become ours, and every key is told once."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.config import import_config, load_config, parse_yaml, read_yaml
from alignlab.config.from_trl import DEFAULTS, FIRST, LOSSES

FOLDER = Path(__file__).with_name("theirs")
FILES = sorted(FOLDER.glob("*.y*ml"))
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
MISTRAL = "mistralai/Mistral-7B-v0.1"
ULTRA = "trl-lib/ultrafeedback_binarized"
SAVED = {"save_strategy": "epoch", "save_total_limit": 4}
ONE = {"per_device_train_batch_size": 1, "num_train_epochs": 1.0, "lr_scheduler_type": "cosine"}

EXPECTED = {  # everything that comes of each file, by hand from the docs and the code of the three
    "trl_dpo_lora": {
        "loss": {"name": "dpo", "beta": 0.1},
        "model": {
            "name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
            "dtype": "bfloat16",
            "load_in_4bit": True,
            "bnb_4bit_use_double_quant": False,
        },
        "data": {"train": [{"path": ULTRA, "split": "train"}], "eval": [{"path": ULTRA, "split": "test"}]},
        "peft": {"r": 32, "lora_alpha": 32, "lora_dropout": 0.05},
        "gradient_checkpointing": True,
        "learning_rate": 5e-6,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "output_dir": "Qwen2.5-DPO",
        "warmup_steps": 0.1,
    },
    "trl_dpo_losses": {
        "loss": {
            "name": "weighted_sum",
            "parts": [
                {"name": "dpo", "beta": 0.3},
                {"name": "bco_pair", "beta": 0.3},
                {"name": "sft", "reduction": "token"},
            ],
            "weights": [0.8, 0.2, 1.0],
        },
        "model": {"name_or_path": "meta-llama/Llama-3.1-8B-Instruct"},
        "data": {"train": [{"path": ULTRA, "split": "train"}]},
        "gradient_checkpointing": True,
        "max_length": 2048,
        "bf16": True,
        "lr_scheduler_type": "cosine",
        "report_to": "wandb",
        "output_dir": "mpo",
    },
    "trl_dpo_divergence": {
        "loss": {"name": "f_dpo", "divergence": "js", "beta": 0.1, "alpha": 0.5},
        "model": {"name_or_path": "meta-llama/Llama-3.1-8B-Instruct"},
        "data": {
            "train": [
                {"path": ULTRA, "split": "train", "weight": 0.5},
                {"path": "mine/pairs", "split": "train", "name": "clean"},
            ]
        },
        "gradient_checkpointing": True,
        "sync_ref_model": True,
        "ref_model_sync_steps": 64,
        "output_dir": "js",
    },
    "trl_kto": {
        "loss": {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5},
        "model": {"name_or_path": "trl-lib/qwen1.5-1.8b-sft"},
        "data": {"train": [{"path": "trl-lib/kto-mix-14k", "split": "train"}]},
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "gradient_accumulation_steps": 1,
        "output_dir": "kto-aligned-model",
        "warmup_steps": 0.1,
        "logging_first_step": True,
    },
    "trl_simpo": {
        "loss": {"name": "simpo", "beta": 2.5, "label_smoothing": 0.0, "gamma": 1.375},
        "model": {"name_or_path": LLAMA},
        "data": {"train": [{"path": "princeton-nlp/llama3-ultrafeedback", "split": "train"}]},
        "gradient_checkpointing": True,
        "max_length": 2048,
        "output_dir": "simpo",
    },
    "llamafactory_dpo": {
        "loss": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0},
        "model": {"name_or_path": LLAMA, "trust_remote_code": True, "dtype": "bfloat16"},
        "data": {"train": [{"path": "data/dpo_en_demo.json"}]},
        "peft": {"r": 8, "lora_dropout": 0.0, "lora_alpha": 16, "target_modules": "all-linear"},
        "max_length": 2048,
        "data_workers": 16,
        "gradient_checkpointing": True,
        "do_train": True,
        "output_dir": "saves/llama3-8b/lora/dpo",
        "logging_steps": 10,
        "save_steps": 500,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 5e-6,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "bf16": True,
        "ddp_timeout": 180000000,
    },
    "llamafactory_kto": {
        "loss": {"name": "kto", "beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.33},
        "model": {"name_or_path": LLAMA, "dtype": "bfloat16"},
        "data": {"train": [{"path": "data/kto_en_demo.json"}], "eval_rows": 200},
        "peft": {"r": 16, "lora_dropout": 0.0, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
        "max_length": 1024,
        "learning_rate": 5e-5,
        "gradient_checkpointing": True,
        "do_train": True,
        "eval_strategy": "steps",
        "eval_steps": 500,
        "output_dir": "saves/llama3-8b/lora/kto",
        "per_device_train_batch_size": 1,
        "bf16": True,
    },
    "llamafactory_orpo": {
        "loss": {"name": "orpo", "nll_scope": "completion", "nll_reduction": "example", "beta": 0.1},
        "model": {"name_or_path": MISTRAL},
        "data": {"train": [{"path": "data/dpo_en_demo.json"}, {"path": "data/dpo_zh_demo.json"}]},
        "max_length": 2048,
        "gradient_checkpointing": True,
        "deepspeed": "zero3.json",
        "output_dir": "saves/orpo",
        "learning_rate": 5e-6,
        "bf16": True,
    },
    "llamafactory_simpo": {
        "loss": {
            "name": "weighted_sum",
            "parts": [{"name": "simpo", "beta": 2.0, "gamma": 1.2}, {"name": "sft", "reduction": "example"}],
            "weights": [1.0, 0.1],
        },
        "model": {
            "name_or_path": "Qwen/Qwen3-4B",
            "attn_implementation": "flash_attention_2",
            "load_in_4bit": True,
        },
        "data": {"train": [{"path": "data/dpo_en_demo.json"}]},
        "peft": {"r": 8, "lora_dropout": 0.0, "lora_alpha": 16, "target_modules": "all-linear"},
        "max_length": 2048,
        "chat_template_kwargs": {"enable_thinking": False},
        "learning_rate": 5e-5,
        "gradient_checkpointing": True,
        "output_dir": "saves/simpo",
        "fp16": True,
    },
    "axolotl_dpo_qlora": {
        "loss": {"name": "dpo", "beta": 0.2, "label_smoothing": 0.0},
        "model": {
            "name_or_path": LLAMA,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "attn_implementation": "flash_attention_2",
            "dtype": "bfloat16",
        },
        "data": {
            "train": [{"path": "fozziethebeat/alpaca_messages_2k_dpo_test", "columns": {"messages": "conversation"}}],
            "eval_rows": 200,
        },
        "peft": {"r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"},
        "optim": "adamw_bnb_8bit",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 4,
        "lr_scheduler_type": "cosine",
        "max_length": 4096,
        "eval_strategy": "steps",
        "eval_steps": 0.0625,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 4,
        "output_dir": "./outputs/lora-out",
        "gradient_accumulation_steps": 4,
        "learning_rate": 0.0002,
        "bf16": "auto",
        "tf32": False,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "warmup_steps": 10,
        "weight_decay": 0.0,
    },
    "axolotl_ipo": {
        "loss": {"name": "ipo", "normalise": "mean", "beta": 0.1},
        "model": {"name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        **ONE,
        "max_length": 512,
        **SAVED,
        "warmup_steps": 0.03,
        "output_dir": "./outputs/ipo",
        "learning_rate": 5e-7,
    },
    "axolotl_kto": {
        "loss": {"name": "kto", "beta": 0.5, "desirable_weight": 0.2, "undesirable_weight": 1.0},
        "model": {"name_or_path": "meta-llama/Llama-3.2-1B", "dtype": "bfloat16"},
        "data": {
            "train": [{"path": "argilla/ultrafeedback-binarized-preferences-cleaned-kto", "split": "train"}],
        },
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "max_length": 512,
        "peft": {"r": 64, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj"]},
        "save_total_limit": 4,
        "warmup_steps": 0.03,
        "remove_unused_columns": False,
        "learning_rate": 0.0002,
        "bf16": True,
        "save_steps": 200,
        "output_dir": "./outputs/kto",
    },
    "axolotl_orpo": {
        "loss": {"name": "orpo", "nll_scope": "full", "beta": 0.1},
        "model": {"name_or_path": MISTRAL},
        "data": {"train": [{"path": "argilla/ultrafeedback-binarized-preferences-cleaned"}]},
        "run_name": "orpo-run",
        **ONE,
        "max_length": 2048,
        **SAVED,
        "warmup_steps": 0.1,
        "report_to": ["wandb"],
        "deepspeed": "zero3.json",
        "learning_rate": 5e-6,
        "output_dir": "./outputs/orpo",
    },
    "axolotl_simpo": {
        "loss": {"name": "simpo", "beta": 10, "gamma": 5},
        "model": {"name_or_path": "google/gemma-2-9b-it"},
        "data": {"train": [{"path": "princeton-nlp/gemma2-ultrafeedback-armorm", "split": "train"}], "eval_rows": 500},
        **ONE,
        "max_length": 512,
        "eval_strategy": "steps",
        **SAVED,
        "warmup_steps": 0.03,
        "learning_rate": 8e-7,
        "output_dir": "./outputs/simpo",
        "eval_steps": 100,
    },
}


def source_of(path):
    return path.name.split("_")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_values_are_those_derived_by_hand_and_parse(path, tmp_path):
    found = import_config(source_of(path), path)
    assert found.values == EXPECTED[path.stem]
    written = tmp_path / "my.yaml"
    written.write_text(found.to_yaml(), encoding="utf-8")
    assert read_yaml(written) == found.values
    assert load_config(written).to_dict() == load_config(found.values).to_dict()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_is_told_once_in_the_order_of_the_file(path):
    given = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    lines = import_config(source_of(path), path).lines
    told = [line.key for line in lines if line.fate != "written out"]
    assert told == list(given)
    beside = [line.key for line in lines if line.fate == "written out"]
    assert len({*beside}) == len(beside)
    assert not {*beside} & {*told}


def told(path):
    return {line.key: str(line) for line in import_config(source_of(path), path).lines}


def test_what_was_kept_changed_or_left_out_is_said_with_the_reason():
    lines = told(FOLDER / "trl_dpo_lora.yaml")
    assert lines["learning_rate"] == "learning_rate: kept"
    assert lines["warmup_ratio"] == "warmup_ratio: changed: warmup_steps: 0.1"
    assert lines["padding_free"] == "padding_free: no counterpart: packed rows have no padding"
    assert lines["lora_alpha"] == "lora_alpha: written out: 32 is the default there; peft.lora_alpha: 32"
    unknown = "unknown: not a key that we know: nothing was made of it"
    assert lines["no_remove_unused_columns"] == f"no_remove_unused_columns: {unknown}"
    assert told(FOLDER / "axolotl_orpo.yml")["some_plugin_key"] == f"some_plugin_key: {unknown}"
    smoothing = told(FOLDER / "trl_dpo_divergence.yaml")["label_smoothing"]
    why = "TRL ignores it with sigmoid; loss.label_smoothing works here"
    assert smoothing == f"label_smoothing: no counterpart: {why}"


def write(tmp_path, **values):
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


TRL = {"model_name_or_path": "sft", "dataset_name": "pairs"}


@pytest.mark.parametrize(("trainer", "kind"), [(one, kind) for one, rules in LOSSES.items() for kind in rules])
def test_every_loss_of_trl_becomes_one_that_builds(tmp_path, trainer, kind):
    named = {} if kind == FIRST[trainer] else {"loss_type": kind}
    found = import_config("trl", write(tmp_path, **TRL, **named, cpo_alpha=0.0, label_smoothing=0.001), trainer)
    assert found.values["loss"]["name"] == LOSSES[trainer][kind][0]["name"]


def test_cpo_trainer_adds_the_likelihood_to_simpo_unless_told(tmp_path):
    found = import_config("trl", write(tmp_path, **TRL, loss_type="simpo", simpo_gamma=1.0))
    parts = [
        {"name": "simpo", "beta": 0.1, "label_smoothing": 0.0, "gamma": 1.0},
        {"name": "sft", "reduction": "token"},
    ]
    assert found.values["loss"] == {"name": "weighted_sum", "parts": parts, "weights": [1.0, 1.0]}
    given = {"base_model": "sft", "datasets": [{"path": "pairs"}], "rl": "simpo", "simpo_gamma": 1.0}
    found = import_config("axolotl", write(tmp_path, **given, learning_rate=1e-6))
    parts = [{"name": "simpo", "beta": 0.1, "gamma": 1.0}, {"name": "sft", "reduction": "token"}]
    assert found.values["loss"] == {"name": "weighted_sum", "parts": parts, "weights": [1.0, 1.0]}


SWITCHES = [
    ({"dpo_norm_loss": True, "rl_beta": 5.0}, {"name": "sigmoid_norm", "beta": 5.0}),
    ({"dpo_use_weighting": True}, {"name": "wpo", "clamp": False, "beta": 0.1}),
    ({"rpo_alpha": 0.5}, {"name": "rpo", "beta": 0.1, "alpha": 0.5}),
    ({"trl": {"beta": 0.7}}, {"name": "dpo", "beta": 0.7, "label_smoothing": 0.0}),
]


@pytest.mark.parametrize(("switch", "loss"), SWITCHES, ids=lambda one: next(iter(one)))
def test_switches_of_axolotl_make_other_losses(tmp_path, switch, loss):
    given = {"base_model": "sft", "datasets": [{"path": "pairs"}], "rl": "dpo", "learning_rate": 1e-6}
    assert import_config("axolotl", write(tmp_path, **given, **switch)).values["loss"] == loss


AXOLOTL = {"base_model": "sft", "datasets": [{"path": "pairs"}], "rl": "dpo", "learning_rate": 1e-6}
FACTORY = {"stage": "dpo", "model_name_or_path": "sft"}
NOT_THE_SAME = [  # each became another loss than the one that is trained there, without a word
    ("trl", TRL | {"loss_type": "hinge", "f_divergence_type": "js_divergence"}, "taken over with loss_type sigmoid"),
    ("trl", TRL | {"loss_type": ["sigmoid", "ipo"], "use_weighting": True}, "use_weighting: taken over with loss_type"),
    ("trl", TRL | {"ld_alpha": 0.5, "use_weighting": True}, "use_weighting: taken over with loss_type sigmoid alone"),
    ("axolotl", AXOLOTL | {"rl": "ipo", "rpo_alpha": 0.5}, "rpo_alpha: taken over for plain rl: dpo alone"),
    ("axolotl", AXOLOTL | {"rpo_alpha": 0.5, "dpo_norm_loss": True}, "dpo_norm_loss: taken over for plain rl: dpo"),
    ("llamafactory", FACTORY | {"ld_alpha": 0.5}, "ld_alpha: there it bends the policy's scores"),
    ("llamafactory", FACTORY | {"pref_loss": "simpo", "pref_bco_weight": 0.5}, "pref_bco_weight: 0.5: it says nothing"),
    ("llamafactory", FACTORY | {"val_size": "x"}, "theirs.yaml: val_size: expected a number, found 'x'"),
    ("llamafactory", FACTORY | {"pref_ftx": "x"}, "theirs.yaml: pref_ftx: expected a number, found 'x'"),
    ("llamafactory", FACTORY | {"pref_bco_weight": -1}, "theirs.yaml: a key holds what llamafactory would not take"),
    ("axolotl", AXOLOTL | {"evals_per_epoch": [1]}, "theirs.yaml: evals_per_epoch: expected a number, found [1]"),
    ("trl", TRL | {"rpo_alpha": "x"}, "theirs.yaml: rpo_alpha: expected a number, found 'x'"),
    ("trl", TRL | {"loss_weights": "x"}, "loss_weights: expected a list of numbers, found 'x'"),
    ("trl", TRL | {"loss_weights": ["x"]}, "loss_weights: expected a list of numbers, found ['x']"),
    ("axolotl", AXOLOTL | {"rl": ["dpo"]}, "rl: ['dpo'] has no counterpart here"),
    ("axolotl", AXOLOTL | {"datasets": "pairs"}, "a key holds what axolotl would not take there"),
    ("axolotl", AXOLOTL | {"num_epochs": "abc"}, "num_epochs: expected a number above 0, found 'abc'"),
]


@pytest.mark.parametrize(("source", "given", "message"), NOT_THE_SAME)
def test_what_would_become_another_run_is_refused(tmp_path, source, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        import_config(source, write(tmp_path, **given))


def test_what_was_lost_on_the_way_comes_over(tmp_path):
    """The likelihood beside DPO, BCO of LLaMA-Factory, a limit that is off, all files, and which beta counts."""
    found = import_config("trl", write(tmp_path, **TRL, rpo_alpha=0.5, max_length=None)).values
    parts = [{"name": "dpo", "beta": 0.1}, {"name": "sft", "reduction": "token"}]
    assert found["loss"] == {"name": "weighted_sum", "parts": parts, "weights": [1.0, 0.5]}
    assert found["max_length"] is None
    found = import_config("llamafactory", write(tmp_path, **FACTORY, pref_bco_weight=1.0, pref_ftx=0.2)).values
    assert [one["name"] for one in found["loss"]["parts"]] == ["dpo", "bco_pair", "sft"]
    assert found["loss"]["weights"] == [0.5, 0.5, 0.2]
    files = [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]
    given = AXOLOTL | {"datasets": files, "rl_beta": 0.2, "trl": {"beta": 0.3}, "evals_per_epoch": 1, "num_epochs": 1}
    found = import_config("axolotl", write(tmp_path, **given, fsdp=["full_shard", "auto_wrap"])).values
    assert found["data"]["train"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    assert found["loss"]["beta"] == 0.3
    assert (found["eval_strategy"], "eval_steps" in found, found["fsdp"]) == ("epoch", False, "full_shard auto_wrap")


REWARDS = [
    ("trl", {**TRL, "center_rewards_coefficient": 0.01}, {"centring": 0.01}, 1e-4),
    ("llamafactory", {"model_name_or_path": "sft", "stage": "rm", "dataset": "pairs"}, {}, 5e-5),
    ("axolotl", {"base_model": "sft", "reward_model": True, "learning_rate": 1e-5}, {}, 1e-5),
]


@pytest.mark.parametrize(("source", "given", "options", "rate"), REWARDS, ids=[row[0] for row in REWARDS])
def test_reward_models_come_over(tmp_path, source, given, options, rate):
    values = import_config(source, write(tmp_path, **given)).values
    assert (values["loss"], values["learning_rate"]) == ({"name": "bradley_terry", **options}, rate)


def test_dataset_info_of_llamafactory_is_read_where_it_is(tmp_path):
    entries = {
        "mine": {"file_name": "mine.json", "ranking": True, "columns": {"prompt": "question", "chosen": "chosen"}},
        "hub": {"hf_hub_url": "org/pairs", "subset": "clean", "split": "train", "ranking": True},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    given = {"model_name_or_path": "sft", "stage": "dpo", "finetuning_type": "full", "dataset_dir": str(tmp_path)}
    found = import_config("llamafactory", write(tmp_path, **given, dataset="mine, hub"))
    columns = {"prompt": "question", "chosen": "chosen"}
    assert found.values["data"]["train"] == [
        {"path": str(tmp_path / "mine.json"), "columns": columns},
        {"path": "org/pairs", "name": "clean", "split": "train"},
    ]
    with pytest.raises(ValueError, match=r"^dataset: .*dataset_info\.json has no entry 'other'$"):
        import_config("llamafactory", write(tmp_path, **given, dataset="other"))


REFUSED = [
    ("llamafactory", {"stage": "sft"}, "stage: 'sft' has no counterpart here; what can be taken over: dpo, kto, rm"),
    ("llamafactory", {"stage": "dpo", "finetuning_type": "freeze"}, "finetuning_type: 'freeze' has no counterpart"),
    ("axolotl", {"base_model": "sft"}, "rl: None has no counterpart here: it is not preference training; "),
    (
        "axolotl",
        {"rl": "grpo"},
        "rl: 'grpo' has no counterpart here; what can be taken over: dpo, ipo, kto, orpo, simpo, reward_model",
    ),
    (
        "trl",
        {**TRL, "loss_type": "dppo"},
        "loss_type: 'dppo' has no counterpart here; what can be taken over: sigmoid,",
    ),
    ("trl", {**TRL, "loss_type": ["sft"], "loss_weights": [1, 2]}, "loss_weights: 2 numbers for 1 losses"),
    (
        "trl",
        {**TRL, "learning_rate": "fast"},
        "theirs.yaml: what came of it is no config: learning_rate: expected float",
    ),
]


@pytest.mark.parametrize(("source", "given", "message"), REFUSED, ids=[str(row[2])[:24] for row in REFUSED])
def test_what_cannot_be_taken_over_is_refused_by_name(tmp_path, source, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        import_config(source, write(tmp_path, **given))


def test_what_a_file_leaves_to_the_command_line_is_written_as_a_place_to_fill(tmp_path):
    found = import_config("trl", write(tmp_path, beta=0.2))
    assert (found.values["model"], found.values["data"]) == (
        {"name_or_path": "path/to/sft-model"},
        {"train": "pairs.jsonl"},
    )
    why = "not in the file: write your own"
    assert f"model.name_or_path: written out: model.name_or_path: path/to/sft-model ({why})" in map(str, found.lines)


def test_command_prints_or_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "axolotl_ipo.yml"
    assert main(["import", "axolotl", str(path)]) == 0
    assert capsys.readouterr().out == import_config("axolotl", path).to_yaml()
    assert main(["import", "axolotl", str(path), "my.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "│ early_stopping_patience │ no counterpart    │ no stop on evaluation" in shown
    assert shown.endswith("alignlab train my.yaml\n")
    assert main(["import", "axolotl", str(path), "my.yaml"]) == 2
    assert capsys.readouterr().err == "alignlab: error: my.yaml is there already; choose another name\n"


def test_keys_and_defaults_of_trl_are_those_of_the_installed_one():
    """Their own dataclasses: a key that they do not know, or a default that has moved, would be our mistake."""
    import trl
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    classes = (trl.DPOConfig, trl.KTOConfig, CPOConfig, ORPOConfig, trl.ModelConfig, trl.ScriptArguments)
    fields = {one.name: one for cls in classes for one in dataclasses.fields(cls)}
    for path in FOLDER.glob("trl_*.yaml"):
        unknown = set(read_yaml(path)) - set(fields)
        assert unknown <= {"no_remove_unused_columns", "warmup_ratio", "max_prompt_length", "datasets"}, path.name
    assert {key: fields[key].default for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("trl", TRL | {"num_train_epochs": "3", "learning_rate": "1e-6", "beta": "0.2", "max_steps": "-1"}, 3),
        ("llamafactory", FACTORY | {"num_train_epochs": "3.0", "pref_beta": "0.2", "val_size": "0.1"}, 3),
        ("axolotl", AXOLOTL | {"num_epochs": "3", "evals_per_epoch": "2", "val_set_size": "0.1", "rl_beta": "0.2"}, 3),
    ],
)
def test_numbers_in_quotes_are_numbers_and_text_stays_text(tmp_path, source, given, expected):
    """The readers of all three cast them by the type of their field; `run_name: "3"` is a name."""
    found = import_config(source, write(tmp_path, **given, run_name="3", max_grad_norm="0.5", output_dir="1e3")).values
    assert (found["num_train_epochs"], found["loss"]["beta"], found["max_grad_norm"]) == (expected, 0.2, 0.5)
    assert (found["run_name"], found["output_dir"]) == ("3", "1e3")


def test_ld_alpha_of_one_is_the_plain_loss(tmp_path):
    for source, given in (("trl", TRL | {"loss_type": "hinge"}), ("trl", TRL), ("llamafactory", FACTORY)):
        found = import_config(source, write(tmp_path, **given, ld_alpha=1.0))
        assert found.values["loss"] == import_config(source, write(tmp_path, **given)).values["loss"]
        assert "ld_alpha: no counterpart: 1.0: all tokens count alike, as in the plain loss" in map(str, found.lines)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"eval_steps": 10},
            "eval_strategy is steps and save_strategy epoch, and the best is known of a checkpoint alone",
        ),
        ({"eval_steps": 10, "save_steps": 15}, "save_steps, 15, is no multiple of eval_steps, 10"),
        ({"evals_per_epoch": 3, "saves_per_epoch": 2}, "save_steps, 0.5, is no multiple of eval_steps, 0.333333"),
        ({"eval_steps": 10, "save_steps": 20}, ""),
        ({"evals_per_epoch": 4, "saves_per_epoch": 2}, ""),
    ],
)
def test_the_best_model_of_axolotl_comes_over_where_its_steps_meet(tmp_path, given, why):
    """There it is off, in silence, where they do not; here such a run would end before its first step."""
    theirs = AXOLOTL | {"val_set_size": 20, "load_best_model_at_end": True, **given}
    found = import_config("axolotl", write(tmp_path, **theirs))
    assert found.values.get("load_best_model_at_end", False) is (why == "")
    told = f"no counterpart: {why}; there it is off then" if why else "kept"
    assert f"load_best_model_at_end: {told}" in map(str, found.lines)
    if why and "saves_per_epoch" not in given:
        with pytest.raises(ValueError, match=re.escape(f"load_best_model_at_end: {why}; write the same for both")):
            load_config({**found.values, "load_best_model_at_end": True})
