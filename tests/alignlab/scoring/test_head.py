"""What the LM head of a model computes: found for known models, and refused where it cannot be proven."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils.operations import convert_outputs_to_fp32
from making import make_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from alignlab.scoring import head as lm_head
from alignlab.scoring.head import head_of
from alignlab.scoring.logits import Head
from alignlab.scoring.positions import score_positions
from alignlab.scoring.wanted import Wanted

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
MODELS: dict[str, tuple[PretrainedConfig, float, float | None, bool]] = {
    "qwen2": (Qwen2Config(**SMALL, tie_word_embeddings=True), 1.0, None, True),
    "gemma2": (Gemma2Config(**SMALL), 1.0, 30.0, True),
    "gemma2_without_cap": (Gemma2Config(**SMALL, final_logit_softcapping=None), 1.0, None, True),
    "gemma3": (Gemma3TextConfig(**SMALL, final_logit_softcapping=20.0), 1.0, 20.0, True),
    "cohere": (CohereConfig(**SMALL, logit_scale=0.0625), 0.0625, None, True),
    "granite": (GraniteConfig(**SMALL, logits_scaling=13.0), 1 / 13.0, None, False),
    "gpt2": (
        GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1),
        1.0,
        None,
        True,
    ),
    "phi": (PhiConfig(**{**SMALL, "num_key_value_heads": 2}), 1.0, None, False),
    "qwen3_moe": (
        Qwen3MoeConfig(
            **SMALL, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, output_router_logits=True
        ),
        1.0,
        None,
        False,
    ),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, float, float | None, bool]:
    """Returns the model and what its head is; weights large enough that logits reach 20."""
    torch.manual_seed(0)
    config, *form = MODELS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = model.get_output_embeddings()
    nn.init.normal_(head.weight)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return model, *form


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_head_of_models(name: str, dtype: torch.dtype) -> None:
    """Scale, soft-cap, bias and tie are found, and scores inside the model's forward equal those of its own logits."""
    model, scale, cap, tied = make(name, dtype)
    head = head_of(model.train())
    assert head == Head(model.get_output_embeddings(), scale, cap, tied)
    assert (head.module.bias is not None) == (name == "phi")
    assert all(module.training for module in model.modules())
    model.eval()
    ids = torch.randint(96, (2, 7))
    inputs, positions, target = {"input_ids": ids}, torch.tensor([1, 4, 8, 12]), torch.tensor([5, 0, 95, 40])
    theirs = model(**inputs)
    found, output = score_positions(model, inputs, positions, head, Wanted(target, row_chunk=3, vocab_chunk=40))
    plain = torch.log_softmax(theirs.logits.reshape(14, 96)[positions].float(), -1)[range(4), target]
    tolerance = 1e-5 if dtype == torch.float32 else 0.15  # bf16 logits near 20 are 0.06 apart or more
    torch.testing.assert_close(found["logps"], plain, rtol=0, atol=tolerance)
    assert output.logits.shape == (1, 4, 0)
    if name == "qwen3_moe":
        assert output.aux_loss.item() == theirs.aux_loss.item() > 0
    if dtype == torch.float32:
        trained = list(model.parameters())
        ours, plains = (torch.autograd.grad(v.sum(), trained, allow_unused=True) for v in (found["logps"], plain))
        for mine, other in zip(ours, plains, strict=True):
            assert (mine is None) == (other is None)
            if other is not None:
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-7)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "granite"])
def test_head_of_models_whose_half_logits_are_handed_on_in_float32(name: str, autocast: bool) -> None:
    """As accelerate wraps a model's forward: scale and cap were applied in bf16, whatever dtype the logits have."""
    model, scale, cap, tied = make(name, torch.float32 if autocast else torch.bfloat16)
    model.forward = convert_outputs_to_fp32(model.forward)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model(input_ids=torch.arange(4)[None]).logits.dtype == torch.float32
        assert head_of(model) == Head(model.get_output_embeddings(), scale, cap, tied)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_head_of_sees_another_scale_in_half_precision(factor: float) -> None:
    """Handed on in float32 or not, a tenth more or less than is known is refused."""
    model = make("gemma2", torch.bfloat16)[0]
    model.register_forward_hook(lambda _, __, out: out.__setattr__("logits", out.logits.float() * factor) or out)
    assert head_of(model) is None


def refusals() -> dict[str, tuple[Any, str]]:
    lora = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    saved = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    unknown_scale, shifted, wide = make_model(), make_model(), make_model()
    unknown_scale.register_forward_hook(lambda _, __, out: out.__setattr__("logits", out.logits * 1.001) or out)
    # clamped at 50: equal on the small logits of four tokens, so only the ramp shows it
    shifted.register_forward_hook(lambda _, __, out: out.__setattr__("logits", out.logits.clamp(max=50)) or out)
    wide.lm_head.forward = lambda hidden: F.linear(hidden * 2, wide.lm_head.weight)
    twice = make_model()

    def call_head(*_: Any) -> None:
        twice.lm_head(torch.zeros(1, 4, 32))

    twice.model.register_forward_hook(call_head)
    return {
        "lora": (lora, "it is a Linear, not a plain nn.Linear"),
        "modules_to_save": (saved, "it is a ModulesToSaveWrapper"),
        "unknown scale": (unknown_scale, "under a known scale and soft-cap"),
        "clamp": (shifted, "under a known scale and soft-cap"),
        "other forward": (wide, "as W h + b"),
        "called twice": (twice, "does not call it once"),
    }


@pytest.mark.parametrize("name", ["lora", "modules_to_save", "unknown scale", "clamp", "other forward", "called twice"])
def test_head_of_refuses_what_it_cannot_prove(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """None, and the reason once in the log, though asked twice."""
    lm_head._log_once.cache_clear()
    model, reason = refusals()[name]
    with caplog.at_level(logging.INFO, "alignlab.scoring.head"):
        assert head_of(model) is None
        assert head_of(model) is None
    assert [reason in record.message for record in caplog.records] == [True]


def test_head_of_falcon_h1_multiplier() -> None:
    """A hybrid, whose logits are its head's output times ``lm_head_multiplier``."""
    config = FalconH1Config(
        **SMALL, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    )
    head = head_of(AutoModelForCausalLM.from_config(config))
    assert head is not None
    assert (head.scale, head.cap) == (0.5, None)
