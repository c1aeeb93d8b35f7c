"""Packed, prefix-shared rows give what plain padded rows give, or are not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_model, make_rows
from transformers import AutoModelForCausalLM

from alignlab.config.arguments import PreferenceConfig
from alignlab.data.layout import ScoredSequence, layout_fields, layout_sequences
from alignlab.scoring import forward as scoring
from alignlab.scoring.packing import FLAT, tree_mask
from alignlab.scoring.probe import choose_layout, probe
from alignlab.training.trainer import PreferenceTrainer

SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
SHAPE |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256}
PACKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", SHAPE, "flat"),
    "qwen2": ("Qwen2Config", SHAPE, "flat"),
    "qwen3": ("Qwen3Config", {**SHAPE, "head_dim": 8}, "flat"),
    "qwen3_moe": ("Qwen3MoeConfig", {**SHAPE, **EXPERTS}, "flat"),
    "mistral": ("MistralConfig", {**SHAPE, "sliding_window": 8}, "flat"),
    "gemma2": ("Gemma2Config", {**SHAPE, "sliding_window": 8, "head_dim": 8}, "rows"),
    "gemma3": ("Gemma3TextConfig", {**SHAPE, "sliding_window": 8, "head_dim": 8}, "flat"),
    "phi3": ("Phi3Config", {**SHAPE, "sliding_window": 8}, "flat"),
    "gpt2": ("GPT2Config", GPT2, "flat"),
    "gpt_oss": ("GptOssConfig", {**SHAPE, "sliding_window": 8, "head_dim": 8, "num_local_experts": 4}, "flat"),
}
MAMBA = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8}
MAMBA |= {"head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8}
FALLBACK: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("Mamba2Config", MAMBA),
    "hybrid": ("Lfm2Config", {**SHAPE, "layer_types": ["conv", "full_attention"] * 2}),
    "alibi": ("BloomConfig", {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def model_of(config: str, values: dict[str, Any]) -> Any:
    """A small model with weights large enough that a wrong mask shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**values))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return model.eval()


def draw(lengths: list[tuple[int, int, int]], seed: int = 0) -> dict[str, list[ScoredSequence]]:
    """Pairs of the given lengths of prompt, chosen and rejected; about a quarter of the tokens do not count."""
    random = np.random.default_rng(seed)
    fields: dict[str, list[ScoredSequence]] = {"chosen": [], "rejected": []}
    for prompt_length, *completions in lengths:
        prompt = random.integers(2, 300, prompt_length)
        for field, length in zip(fields, completions, strict=True):
            counts = random.random(length) < 0.75
            counts[-1] = True
            fields[field].append(ScoredSequence(prompt, random.integers(2, 300, length), counts))
    return fields


RAGGED = [(11, 9, 5), (3, 14, 2), (20, 1, 7), (8, 8, 8), (1, 6, 3), (16, 4, 12)]


def scores_and_gradient(model: Any, fields: Any, mode: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Scores of a layout, and the gradient of a random weighting of them."""
    layout = layout_fields(fields, 0, mode, **options)
    model.zero_grad()
    logps = scoring.score(model, layout)["logps"]
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))
    (logps * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logps.detach(), gradient, layout


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_padded(name: str) -> None:
    """Scores within 1e-4 nats and gradients within 1e-4 of the largest, rows longer than the window."""
    config, values, mode = PACKED[name]
    model = model_of(config, values)
    plain, plain_gradient, _ = scores_and_gradient(model, draw(RAGGED), "padded", score_prompt=True)
    assert probe(model, 0) == (mode, "")
    packed, gradient, layout = scores_and_gradient(model, draw(RAGGED), mode, score_prompt=True, row_length=40)
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-4)
    scale = plain_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, plain_gradient / scale, rtol=0, atol=1e-4)
    tokens = sum(p + a + b for p, a, b in RAGGED)
    assert int((layout["shares"] > 0).sum()) == tokens, "each prompt goes through the model once"
    assert int(layout["shares"].sum()) == sum(2 * p + a + b for p, a, b in RAGGED)


@pytest.mark.parametrize("name", FALLBACK)
def test_probe_falls_back(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Recurrent, hybrid and ALiBi models are padded, and the log says why; asking for packed is refused."""
    model = model_of(*FALLBACK[name])
    assert choose_layout("auto", [model], 0) == "padded"
    assert "rows are padded and prompts repeated" in caplog.text
    assert type(model).__name__ in caplog.text
    with pytest.raises(ValueError, match="layout: packed was asked for"):
        choose_layout("packed", [model], 0)


def test_tree_mask_by_hand() -> None:
    """Prompt of 2, completions of 2 and 1; then the same with a window of 2 positions."""
    expected = ["10000", "11000", "11100", "11110", "11001"]
    assert tree_mask([2, 2, 1]).int().tolist() == [[int(c) for c in row] for row in expected]
    windowed = ["10000", "11000", "01100", "00110", "01001"]
    assert tree_mask([2, 2, 1], (2, None)).int().tolist() == [[int(c) for c in row] for row in windowed]
    chunked = ["10000", "11000", "00100", "00110", "00001"]
    assert tree_mask([2, 2, 1], (None, 2)).int().tolist() == [[int(c) for c in row] for row in chunked]


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)
LLAMA = make_model(num_hidden_layers=1)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, room=st.integers(1, 60), seed=st.integers(0, 9))
def test_any_ragged_layout_scores_the_same(lengths: list[tuple[int, int, int]], room: int, seed: int) -> None:
    """Random lengths, loss masks and row lengths: rows, flat and padded agree, and no slot is written twice."""
    fields = draw(lengths, seed)
    found = {}
    for mode in ("padded", "rows", "flat"):
        LLAMA.set_attn_implementation(FLAT)
        layout = layout_fields(fields, 0, mode, score_prompt=True, row_length=room)
        assert len(set(layout["slot"].tolist())) == len(layout["slot"]) == int(layout["mask"].sum())
        with torch.no_grad():
            found[mode] = scoring.score(LLAMA, layout)["logps"]
    torch.testing.assert_close(found["rows"], found["padded"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["flat"], found["padded"], rtol=0, atol=1e-4)
    together = layout_sequences(fields["chosen"] + fields["rejected"], 0, "flat")
    with torch.no_grad():
        one_field = scoring.score(LLAMA, together)["logps"][0]
    depth = one_field.shape[1]
    torch.testing.assert_close(one_field, found["padded"][:2, :, :depth].reshape(-1, depth), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "tdpo", "group_robust", "sft"])
def test_trajectories_packed_and_padded(loss: str, tokenizer: Any, tmp_path: Path) -> None:
    """20 steps: losses of every step within 1e-4."""
    spec: dict[str, Any] = {"name": loss, "base": {"name": "dpo"}} if loss == "group_robust" else {"name": loss}
    found = {}
    for layout in ("packed", "padded"):
        args = PreferenceConfig(
            output_dir=str(tmp_path),
            max_steps=20,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            layout=layout,
            disable_tqdm=True,
        )
        rows = make_rows(24, groups=("a", "b"))
        run = PreferenceTrainer(make_model(), args, spec, rows, None, tokenizer)
        assert run.layout == ("flat" if layout == "packed" else "padded")
        run.train()
        found[layout] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(found["packed"]) == 20
    assert found["packed"] == pytest.approx(found["padded"], abs=1e-4)


def test_load_balancing_loss_of_experts_packed_and_padded(tokenizer: Any, tmp_path: Path) -> None:
    """Qwen3-MoE with its auxiliary loss: steps within 1e-4, the metric within 1e-5, and transformers' own value."""
    found = {}
    for layout in ("packed", "padded"):
        config, values, _ = PACKED["qwen3_moe"]
        model = model_of(config, {**values, "output_router_logits": True, "router_aux_loss_coef": 0.5})
        args = PreferenceConfig(
            output_dir=str(tmp_path),
            max_steps=5,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            layout=layout,
            disable_tqdm=True,
        )
        run = PreferenceTrainer(model, args, "dpo", make_rows(8), None, tokenizer)
        inputs = next(iter(run.get_train_dataloader()))
        run.train()
        entries = [entry for entry in run.state.log_history if "loss" in entry]
        found[layout] = [entry["loss"] for entry in entries], [entry["aux_loss"] for entry in entries]
        if layout == "padded":
            plain = inputs["completions"]
            model = model_of(config, {**values, "output_router_logits": True})
            own = [
                model(input_ids=plain["input_ids"], attention_mask=plain["attention_mask"]).aux_loss.item(),
            ]
            router: Any = run._step.router
            router.trunk = model.model
            with router.watching(), torch.no_grad():
                scoring.score(model, plain)
            assert router.loss(plain["shares"]).item() == pytest.approx(own[0], abs=1e-6)
    assert found["packed"][0] == pytest.approx(found["padded"][0], abs=1e-4)
    assert found["packed"][1] == pytest.approx(found["padded"][1], abs=1e-5)
    assert found["packed"][0][0] == pytest.approx(np.log(2) + 0.5 * found["packed"][1][0], abs=1e-5)


def test_gradient_checkpointing_keeps_the_trees(tokenizer: Any, tmp_path: Path) -> None:
    """Recomputed layers see the same masks: equal gradients with and without checkpointing."""
    model = make_model()
    probe(model, 0)
    _, plain, _ = scores_and_gradient(model, draw(RAGGED), "flat")
    model.train()
    model.gradient_checkpointing_enable()
    _, again, _ = scores_and_gradient(model, draw(RAGGED), "flat")
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)


def test_flex_attention_forward_on_the_cpu() -> None:
    """FlexAttention has no backward on the CPU; its forward agrees with padded rows."""
    model = make_model(num_hidden_layers=1)
    fields = draw([(20, 30, 10), (9, 25, 40)])
    with torch.no_grad():
        plain = scoring.score(model, layout_fields(fields, 0, "padded"))["logps"]
        model.set_attn_implementation("flex_attention")
        packed = scoring.score(model, layout_fields(fields, 0, "rows", row_length=128))["logps"]
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-4)
