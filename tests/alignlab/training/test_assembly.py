"""What a trainer is made of: one device a process, a model on one device, and what is said where that is not so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from alignlab.config import PreferenceConfig
from alignlab.runtime import FULL_FP32, product_error
from alignlab.training import PreferenceTrainer, assembly

SPLIT = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": "cpu", "lm_head": 1}


def trainer(
    tokenizer: Any, folder: Path, model: Any = None, ref_model: Any = None, devices: int = 0, **options: Any
) -> Any:
    """Returns a trainer of one step, in a process that sees so many accelerators."""
    args = PreferenceConfig(str(folder), max_steps=1, save_strategy="no", disable_tqdm=True, **options)
    assert args.device.type == "cpu"
    args._n_gpu = devices
    return PreferenceTrainer(model or make_model(), args, "dpo", make_rows(8), None, tokenizer, ref_model=ref_model)


@pytest.mark.parametrize("name", ["model", "ref_model"])
def test_a_model_on_several_devices_is_refused_by_name(name: str, tokenizer: Any, tmp_path: Path) -> None:
    split = make_model()
    split.hf_device_map = SPLIT
    with pytest.raises(ValueError, match=rf"^{name}: device_map has put it on several devices \(0, 1, cpu\)"):
        trainer(tokenizer, tmp_path, **{name: split})


def test_a_model_that_a_map_put_on_one_device_is_taken(tokenizer: Any, tmp_path: Path) -> None:
    """As ``device_map={"": 0}`` does, and our own loading of quantised weights."""
    whole = make_model()
    whole.hf_device_map = {"": "cpu"}
    assert trainer(tokenizer, tmp_path, whole).train().global_step == 1


def test_a_process_that_sees_several_devices_trains_on_one(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The stock Trainer would wrap the model in DataParallel, which cuts packed rows and their prompts in pieces."""
    with caplog.at_level(logging.WARNING, "alignlab"):
        run = trainer(tokenizer, tmp_path, devices=3)
        run.train()
    assert "3 accelerators are visible, but a process trains on one" in caplog.text
    assert "torchrun --nproc-per-node 3" in caplog.text
    assert type(run.model_wrapped).__name__ == "LlamaForCausalLM"
    assert run.args.train_batch_size == run.args.per_device_train_batch_size


@pytest.mark.parametrize(("error", "name"), [(1e-6, "float32"), (1e-3, "float32 rounded")])
def test_rounded_products_are_in_the_cache_s_name_whoever_chose_them(
    error: float, name: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our key is not given: what is measured on the device counts, as after ``tf32: true``."""
    monkeypatch.setattr(assembly, "product_error", lambda device: error)
    assert trainer(tokenizer, tmp_path)._numerics.name(torch.float32) == name


def test_products_in_parts_of_bf16_are_found_where_the_process_chose_them(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own switch, set before us; whether this processor follows it is measured here as well."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        rounds = product_error(torch.device("cpu")) > FULL_FP32
        assert trainer(tokenizer, tmp_path)._numerics.rounds_fp32 is rounds
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_dropout_is_left_where_none_is_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    """Llama hands a rate of its own to attention, and has no module for it: training's scores are evaluation's."""
    run = trainer(tokenizer, tmp_path, make_model(attention_dropout=0.5))
    assert [layer.self_attn.attention_dropout for layer in run.model.model.layers] == [0.0, 0.0]
    ids = torch.arange(2, 40)[None]
    assert torch.equal(run.model.train()(ids).logits, run.model.eval()(ids).logits)
    assert run.model.config.attention_dropout == 0.5, "what is saved says what the model was made with"
    sizes = {"vocab_size": 300, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("opt", **sizes, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5)
    run = trainer(tokenizer, tmp_path / "opt", AutoModelForCausalLM.from_config(config))
    assert torch.equal(run.model.train()(ids).logits, run.model.eval()(ids).logits)
    kept = trainer(tokenizer, tmp_path / "kept", make_model(attention_dropout=0.5), disable_dropout=False)
    assert [layer.self_attn.attention_dropout for layer in kept.model.model.layers] == [0.5, 0.5]


def test_rows_and_answers_that_outgrow_a_table_of_positions_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    """An IndexError in some step, or a device that asserts; rows of lists count by their longest completion."""
    config = GPT2Config(
        vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ValueError, match=r"^max_length: the longest row has \d+ tokens, and the model has positions for 16"
    ):
        trainer(tokenizer, tmp_path, model)
    lists = [{"prompt": "a red cat", "completions": ["a", "a dog " * 16, "a bird"], "scores": [1.0, 0.5, 0.2]}]
    args = PreferenceConfig(str(tmp_path), max_steps=1, save_strategy="no", disable_tqdm=True)
    with pytest.raises(
        ValueError, match=r"^max_length: the longest row has \d+ tokens, and the model has positions for 16"
    ):
        PreferenceTrainer(model, args, "plackett_luce", lists, None, tokenizer)
    args = PreferenceConfig(str(tmp_path), max_length=16, eval_generations=1, save_strategy="no", disable_tqdm=True)
    message = (
        r"^eval_max_new_tokens: prompts and answers have up to \d+ tokens, and the model has positions for 16, in a"
    )
    with pytest.raises(ValueError, match=message):
        PreferenceTrainer(model, args, "dpo", make_rows(8), 2, tokenizer)
