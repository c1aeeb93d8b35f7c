"""What only a GPU can show of whole runs; skipped, with the reason, where there is none. ``make gpu`` runs them.

With ``ALIGNLAB_TEST_GPU=cpu`` they run on the CPU: that proves the tests, so that none fails on a GPU for being wrong.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_ranks
from making import make_model, make_rows, make_tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config

from alignlab import PreferenceConfig, PreferenceTrainer, load_config, losses, train
from alignlab.data import attention_plan
from alignlab.scoring.kernels import capped_attention
from alignlab.scoring.packing import tree_mask

GPU = torch.cuda.is_available()
HERE = GPU or os.environ.get("ALIGNLAB_TEST_GPU") == "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HERE, reason="no GPU here: `make gpu` runs these where there is one"),
]


def trainer(folder: Path, loss: Any = "dpo", model: Any = None, rows: Any = None, **options: Any) -> PreferenceTrainer:
    """A trainer on the GPU over small rows."""
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": True,
        "use_cpu": not GPU,
    }
    args, groups = PreferenceConfig(**{**values, **options}), ("a", "b")
    data = rows or make_rows(32, groups=groups), make_rows(8, 1, groups)
    return PreferenceTrainer(model or make_model(), args, loss, *data, make_tokenizer())


def losses_of(one: PreferenceTrainer) -> list[float]:
    """The logged training losses."""
    return [entry["loss"] for entry in one.state.log_history if "loss" in entry]


def test_starts_at_log_two_and_learns(tmp_path: Path) -> None:
    """DPO under bf16 autocast with a cached reference begins at log 2; the layout is packed, the device CUDA."""
    one = trainer(tmp_path, max_steps=30)
    assert one.layout == "flat"
    one.train()
    assert next(one.model.parameters()).is_cuda == GPU
    found = losses_of(one)
    assert found[0] == pytest.approx(0.6931, abs=1e-3)
    assert sum(found[-5:]) / 5 < 0.6


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_trains_and_evaluates(tmp_path: Path, tokenizer: Any, name: str) -> None:
    """Ten steps of each loss of the zoo in bf16 are finite, and so is an evaluation on its own rows."""
    zoo_ranks.save_scorer(tmp_path)
    one = zoo_ranks.trainer(tokenizer, tmp_path, losses.build(name), bf16=True, use_cpu=not GPU)
    before = one.evaluate(one.data.train)  # the scores of its own reference are there
    assert math.isfinite(before["eval_loss"])
    assert all(map(math.isfinite, zoo_ranks.trajectory(one)))


@pytest.mark.parametrize("window", [None, 60])
def test_soft_caps_equal_dense_attention(window: int | None) -> None:
    """Output and gradients in bf16 are no further from float64 than 1.5 times what dense attention in bf16 is."""
    trees, cap, device = [[300, 90, 200], [1, 40], [130, 7, 250, 64]], 1.5, "cuda" if GPU else "cpu"
    tokens, generator = sum(map(sum, trees)), torch.Generator().manual_seed(0)
    inputs = [torch.randn(tokens, heads, 64, generator=generator).to(device, torch.bfloat16) for heads in (8, 2, 2)]
    grad = torch.randn(tokens, 8, 64, generator=generator).to(device, torch.bfloat16)
    allow = torch.block_diag(*(tree_mask(tree, (window, None)).float() for tree in trees)).bool().to(device)
    plan = attention_plan(trees)
    plan = plan._replace(table=plan.table.to(device))

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return capped_attention(q, k, v, plan, cap=cap, window=window)

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (one.repeat_interleave(4, 1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k).to(torch.promote_types(q.dtype, torch.float32)) / 8
        weights = (cap * torch.tanh(scores / cap)).masked_fill(~allow, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)

    def run(side: Any, kind: torch.dtype) -> list[torch.Tensor]:
        leaves = [one.to(kind).requires_grad_() for one in inputs]
        out = side(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(kind))]

    exact = run(dense, torch.float64)
    worst = [
        max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))
        for found in (run(kernel, torch.bfloat16), run(dense, torch.bfloat16))
    ]
    assert 0 < worst[0] <= 1.5 * worst[1]


def test_soft_capped_models_are_packed_in_one_row_on_a_gpu(tmp_path: Path) -> None:
    """Gemma 2 in bf16: attention without masks; the loss begins at log 2. On a CPU its rows are eager ones."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=16, pad_token_id=0)
    one = trainer(tmp_path, model=AutoModelForCausalLM.from_config(config))
    assert one.layout == ("flat" if GPU else "rows")
    one.train()
    assert losses_of(one)[0] == pytest.approx(0.6931, abs=1e-3)


def test_float32_equals_the_cpu(tmp_path: Path) -> None:
    """Four steps in true float32 give the CPU's losses within 1e-4."""
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for name, cpu in (("gpu", False), ("cpu", True)):
        one = trainer(tmp_path / name, bf16=False, use_cpu=cpu, float32_matmul_precision="highest")
        one.train()
        found.append(losses_of(one))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_resumes_as_if_never_stopped(tmp_path: Path) -> None:
    """Six steps, and three, a checkpoint, three more: the same losses within bf16's reordering."""
    whole = trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    first = trainer(tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    again = trainer(tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "run" / "checkpoint-3"))
    assert losses_of(again)[-3:] == pytest.approx(losses_of(whole)[-3:], abs=2e-3)


@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo", "tdpo"])
def test_a_micro_batch_does_not_wait_for_the_gpu(tmp_path: Path, loss: str) -> None:
    """In steady state the forward and backward of a micro-batch never synchronise: CUDA itself is asked to raise."""
    one, step = trainer(tmp_path, loss, max_steps=6, gradient_accumulation_steps=2, logging_steps=6), [0]
    forward = one.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        if GPU:
            torch.cuda.set_sync_debug_mode("error" if step[0] > 6 else "default")
        try:
            return forward(*args, **kwargs)
        finally:
            if GPU:
                torch.cuda.set_sync_debug_mode("default")

    one.training_step = watched  # type: ignore[method-assign]
    one.train()
    assert step[0] == 12


def test_four_bit_with_lora(tmp_path: Path, model_path: Path) -> None:
    """A whole run of a config: 4-bit base, LoRA, evaluation with samples, report, saved adapter."""
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(24)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path), "load_in_4bit": True},
        "peft": {"r": 4},
        "data": {"train": str(path), "eval_rows": 4},
        "output_dir": str(tmp_path / "run"),
        "score_cache_dir": str(tmp_path / "scores"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "bf16": True,
        "use_cpu": not GPU,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_samples": 2,
    }
    done = train(load_config(values))
    assert (done / "adapter_model.safetensors").exists()
    assert (done / "report.html").exists()
