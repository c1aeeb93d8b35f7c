"""Configs: what is right comes through with its type, what is wrong fails by its dotted key before anything loads."""

import copy
from typing import Any

import pytest
from transformers import TrainingArguments

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.options import DataConfig
from alignlab.config.parser import write_yaml
from alignlab.config.run import load_config, schema

BASE: dict[str, Any] = {
    "loss": {"name": "group_robust", "base": {"name": "ipo", "beta": 0.1}},
    "model": {"name_or_path": "some/model"},
    "data": {"train": "pairs.jsonl"},
}


def merged(changes):
    values = copy.deepcopy(BASE)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key].update(value)
        else:
            values[key] = value
    return values


def refused(changes, *words):
    with pytest.raises(ValueError, match=r".") as error:
        load_config(merged(changes), words)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learningrate": 1}, "learningrate: unknown key; did you mean learning_rate?"),
        ({"weight_decy": 1}, "weight_decy: unknown key; did you mean weight_decay?"),
        ({"qwertz": 1}, "qwertz: unknown key; `alignlab train --help-all` lists all"),
        ({"model": {"name_or_pth": "x"}}, "model.name_or_pth: unknown key; did you mean model.name_or_path?"),
        ({"data": {"trian": "x"}}, "data.trian: unknown key; did you mean data.train?"),
        (
            {"data": {"train": [{"path": "x", "wieght": 2}]}},
            "data.train[0].wieght: unknown key; did you mean data.train",
        ),
        ({"data": {"eval": {"a": ["x", {"weight": 1}]}}}, "data.eval.a[1].path: required, and not given"),
        ({"loss": {"step_siz": 1.0}}, "loss.step_siz: there is no option 'step_siz'; did you mean step_size"),
        (
            {"loss": {"base": {"name": "ipo", "beat": 1.0}}},
            "loss.base.beat: there is no option 'beat'; did you mean beta",
        ),
        ({"loss": {"name": "dop"}}, "loss.name: there is no loss 'dop'; did you mean dpo"),
        ({"peft": {"lora_alhpa": 8}}, "peft.lora_alhpa: unknown key; did you mean peft.lora_alpha?"),
        ({"peft": {"peft_type": "LORRA"}}, "peft.peft_type: expected one of ADALORA"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_valid_one(changes, message):
    assert refused(changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 5.7}, "per_device_train_batch_size: expected int, found 5.7"),
        ({"per_device_train_batch_size": True}, "per_device_train_batch_size: expected int, found True"),
        ({"per_device_train_batch_size": [5]}, "per_device_train_batch_size: expected int, found [5]"),
        ({"per_device_train_batch_size": "5"}, "per_device_train_batch_size: expected int, found text '5'"),
        ({"bf16": "yes"}, "bf16: expected true or false or auto, found text 'yes'"),
        ({"bf16": 1}, "bf16: expected true or false or auto, found 1"),
        ({"learning_rate": "1e-3"}, "learning_rate: expected float, found text '1e-3'"),
        ({"run_name": 5}, "run_name: expected text or null, found 5"),
        (
            {"reference": "cache"},
            "reference: expected one of auto, cached, live, adapter_off, none, found text 'cache'",
        ),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: there is no 'cosin'; did you mean cosine or"),
        ({"model": {"load_in_4bit": "no"}}, "model.load_in_4bit: expected true or false, found text 'no'"),
        ({"model": 3}, "model: expected mapping, found 3"),
        ({"data": {"train": 5}}, "data.train: expected text or list of text or mapping, found 5"),
        ({"loss": "dpo"}, "loss: expected mapping, found text 'dpo'"),
        ({"loss": {"base": {"name": "ipo", "beta": "0.1"}}}, "loss.base.beta: input should be a valid number"),
        ({"peft": {"r": 8.5}}, "peft.r: expected int, found 8.5"),
        ({"peft": {"init_lora_weights": "pisa"}}, "peft.init_lora_weights: expected"),
    ],
)
def test_wrong_types_are_refused(changes, message):
    assert refused(changes).startswith(message)


@pytest.mark.parametrize("key", ["beta", "loss_type", "label_smoothing", "simpo_gamma", "model_name_or_path", "lora_r"])
def test_keys_known_from_elsewhere_are_refused_with_what_to_write(key):
    message = refused({key: 0.1})
    assert message.startswith(f"{key}: not a key of this config; ")
    assert ": {" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 cannot work here"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: 'group_by_length' cannot work here"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint: True cannot work here"),
        (
            {"bf16_full_eval": True},
            "bf16_full_eval: True cannot work here: evaluation runs in the precision of training",
        ),
        (
            {"fp16_full_eval": True},
            "fp16_full_eval: True cannot work here: evaluation runs in the precision of training",
        ),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both true"),
        ({"max_length": 1}, "max_length: expected at least 2, found 1"),
        ({"reference": "adapter_off"}, "reference: adapter_off needs an adapter"),
        ({"reference": "none", "ref_model_name_or_path": "x"}, "ref_model_name_or_path: 'x' would never be used"),
        ({"model": {"load_in_4bit": True}}, "model.load_in_4bit: needs an adapter"),
        ({"model": {"load_in_4bit": True, "load_in_8bit": True}}, "model.load_in_4bit and model.load_in_8bit"),
        ({"model": {"adapter": "a"}, "peft": {"r": 8}}, "peft and model.adapter are both given"),
        ({"eval_strategy": "steps"}, "eval_strategy: nothing to evaluate on"),
        ({"data": {"eval": "x", "eval_rows": 3}}, "data.eval and data.eval_rows are both given"),
        ({"data": {"eval_rows": 0}}, "data.eval_rows: expected at least 1, found 0"),
        ({"data": {"train": ""}}, "data.train: expected a path, a hub id, or a list of these, found ''"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    assert refused(changes).startswith(message)


@pytest.mark.parametrize("missing", ["loss", "model", "data"])
def test_required_blocks(missing):
    with pytest.raises(ValueError, match=rf"{missing}.*: required, and not given"):
        load_config({key: value for key, value in BASE.items() if key != missing})


def test_values_come_through_with_their_types():
    values = merged({"learning_rate": 1, "peft": {"r": 4, "target_modules": "all-linear"}, "scorers": {"help": "path"}})
    config = load_config(values)
    assert config.training["learning_rate"] == 1.0
    assert isinstance(config.training["learning_rate"], float)
    assert config.data == DataConfig(train="pairs.jsonl")
    assert config.peft == {"r": 4, "target_modules": "all-linear"}
    assert config.training["scorers"] == {"help": "path"}
    assert values["learning_rate"] == 1  # the caller's mapping is left alone


@pytest.mark.parametrize(
    ("words", "where", "expected"),
    [
        (["--loss.base.beta", "1e-3"], ("loss", "base"), {"name": "ipo", "beta": 0.001}),  # the sibling stays
        (["--loss.base={name: dpo, beta: 1e-2}"], ("loss", "base"), {"name": "dpo", "beta": 0.01}),
        (["--learning_rate", "1e-3"], ("learning_rate",), 0.001),
        (["--learning_rate=1e-3", "--learning_rate=2e-3"], ("learning_rate",), 0.002),
        (["--max_steps", "-1"], ("max_steps",), -1),
        (["--run_name", "5"], ("run_name",), "5"),  # text stays text
        (["--run_name", "null"], ("run_name",), None),
        (["--bf16", "true"], ("bf16",), True),
        (["--peft.r", "8"], ("peft",), {"r": 8}),
        (["--data.train", "[a, b]"], ("data", "train"), ["a", "b"]),
        (["--optim", "sgd"], ("optim",), "sgd"),
    ],
)
def test_dotted_overrides(words, where, expected):
    found = load_config(BASE, words).to_dict()
    for key in where:
        found = found[key]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_r", "1"], "learning_r: unknown key; did you mean learning_rate?"),  # no abbreviations
        (["--bf16"], "--bf16 needs a value"),
        (["--bf16", "--fp16", "true"], "--bf16 needs a value"),
        (["--bf16", "yes"], "bf16: expected true or false or auto, found text 'yes'"),
        (["--data.train.path", "x"], "--data.train.path: data.train is 'pairs.jsonl', which has no keys"),
        (["other.yaml"], "overrides start with --, found 'other.yaml'"),
        (["--loss.base", "{name: ipo, name: dpo}"], "--loss.base: key 'name' stands twice"),
    ],
)
def test_wrong_overrides(words, message):
    assert refused({}, *words).startswith(message)


def test_duplicate_yaml_keys_are_refused_with_their_lines(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("loss:\n  name: dpo\n  beta: 0.1\n  beta: 0.2\nmodel: {name_or_path: m}\ndata: {train: d}\n")
    with pytest.raises(ValueError, match=r"run.yaml: key 'beta' stands twice in one mapping, in lines 3 and 4"):
        load_config(path)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "- a\n- b", "\tx: 1"])
def test_broken_yaml_names_the_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run.yaml: (not valid YAML|a config is a mapping)"):
        load_config(path)


def test_resolved_config_reads_back_the_same(tmp_path):
    config = load_config(BASE, ["--peft.r", "8", "--run_name", "1e-3", "--scorers.a", "p", "--eval_delay", "0.5"])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_a_secret_has_no_place_in_a_config():
    assert "HF_TOKEN" in refused({"hub_token": "secret"})
    assert "hub_token" not in load_config(BASE).to_yaml()


def test_training_arguments_get_every_value(tmp_path):
    words = ["--output_dir", str(tmp_path), "--learning_rate", "3e-5", "--max_length", "77", "--optim", "sgd"]
    args = load_config(BASE, words).training_args()
    assert isinstance(args, TrainingArguments)
    assert (args.learning_rate, args.max_length, args.optim.value) == (3e-5, 77, "sgd")
    assert (args.remove_unused_columns, args.label_names, args.report_to) == (False, [], [])


def test_python_and_yaml_have_the_same_defaults(tmp_path):
    ours = PreferenceConfig(output_dir=str(tmp_path))
    theirs = load_config(BASE, ["--output_dir", str(tmp_path)]).training_args()
    assert ours.to_dict() == theirs.to_dict()


def test_shipped_deepspeed_config_is_found_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = load_config(BASE, ["--deepspeed", "zero2.json"]).training_args()
    assert args.hf_deepspeed_config.config["zero_optimization"]["stage"] == 2


def test_a_file_comes_before_the_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("dpo.yaml").data.eval_rows == 200
    (tmp_path / "dpo.yaml").write_text(write_yaml(BASE), encoding="utf-8")
    assert load_config("dpo.yaml").data.eval_rows is None
    assert load_config("dpo.yaml").training["output_dir"] == "runs/dpo"


def test_a_config_that_does_not_exist_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match=r"no config 'nope'; shipped ones.*dpo\.yaml"):
        load_config("nope")


def test_every_key_says_what_it_is():
    groups = {title: keys for title, keys in schema().groups.items() if title != "transformers.TrainingArguments"}
    assert [key.name for keys in groups.values() for key in keys if len(key.help.split()) < 2] == []
    assert sum(map(len, groups.values())) < len(schema().types)


def test_parallelism_in_a_config_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"parallelism_config: not a key .* would cut rows"):
        load_config({**BASE, "parallelism_config": {"cp_size": 2}})


def test_merging_shards_is_refused() -> None:
    run = {**BASE, "peft": {"r": 4}, "deepspeed": "zero3.json"}
    with pytest.raises(ValueError, match=r"model\.merge_adapter: under ZeRO-3"):
        load_config({**run, "model": {"name_or_path": "model", "merge_adapter": True}}).training_args()


@pytest.mark.parametrize(
    ("key", "kind"),
    [("max_steps", "int"), ("learning_rate", "float"), ("seed", "int"), ("report", "true or false"), ("optim", None)],
)
def test_null_for_a_key_without_it_is_no_default(key, kind):
    """Null passed for every key, and the run died of it after the rows were read, or took it for false."""
    said = refused({key: None})
    assert said.startswith(f"{key}: expected {kind or 'one of adamw_torch, '}")
    assert said.endswith("found null; for the default leave the key out")
    assert load_config(merged({"max_length": None})).training["max_length"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number, found nan"),
        ({"weight_decay": float("inf")}, "weight_decay: expected a finite number, found inf"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm: expected a finite number, found nan"),
        ({"adam_beta1": 1.0}, "adam_beta1: expected less than 1, found 1.0"),
        ({"adam_beta2": -0.1}, "adam_beta2: expected at least 0, found -0.1"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"data_seed": 2**32}, "data_seed: expected less than 4294967296, found 4294967296"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, found -1.0"),
        ({"fsdp": "nope"}, "fsdp: expected full_shard, with auto_wrap or offload or without; found nope"),
    ],
)
def test_numbers_that_libraries_refuse_late_or_never(changes, message):
    assert refused(changes) == message
    assert load_config(merged({"max_grad_norm": float("inf")})).training["max_grad_norm"] == float("inf")
