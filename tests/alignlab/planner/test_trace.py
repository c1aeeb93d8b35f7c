"""The trace of a step: what it counts is what tensors take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, Gemma2Config, MixtralConfig

from alignlab.planner.trace import MemoryTrace, StepShape, trace_step

# Embedding and head 300 x 32 each; of two layers: q, o 32 x 32, k, v 32 x 16, three of 32 x 64, two norms; a last norm.
PARAMETERS = 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32


def test_trace_counts_a_storage_once_and_until_nothing_refers_to_it() -> None:
    """Two tensors of 400 bytes at a time, then one, then a view, which takes nothing: the peak is 800."""
    with FakeTensorMode(), MemoryTrace() as trace:
        first = torch.zeros(100)
        second = first + 1
        del first
        view = second.view(10, 10)
        assert trace.now.total() == 400
        del second
        assert trace.now.total() == 400
        del view
        assert trace.now.total() == 0
    assert sum(trace.peak.values()) == 800


def test_trace_of_a_shared_kind_counts_this_ranks_part() -> None:
    with FakeTensorMode(), MemoryTrace({"weights": 0.25}) as trace:
        with trace.making("weights"):
            weight = torch.zeros(100)
        other = torch.zeros(50)
        trace.rename(other, "gradients")
        del weight
    assert trace.peak == {"weights": 100, "activations": 200}
    assert trace.now["gradients"] == 200


def test_backward_keeps_inputs_and_makes_gradients(model_path: Path) -> None:
    """At the end of the backward all gradients stand beside all weights: the peak is at least both."""
    traced = trace_step(AutoConfig.from_pretrained(model_path), StepShape(prompt=1, completion=1))
    assert traced.total == traced.trained == PARAMETERS
    assert traced.weights == pytest.approx(4 * PARAMETERS, rel=0.001)  # and the rotary frequencies
    assert sum(traced.peak.values()) >= 8 * PARAMETERS


def test_activations_grow_with_tokens_and_not_with_layers_under_checkpointing(model_path: Path) -> None:
    architecture = AutoConfig.from_pretrained(model_path)
    architecture.num_hidden_layers = 8

    def activations(**changes: Any) -> float:
        shape = StepShape(**{"prompt": 256, "completion": 256, **changes})
        return trace_step(architecture, shape).peak["activations"]

    one, two = activations(pairs=1), activations(pairs=2)
    assert two == pytest.approx(2 * one, rel=0.05)
    assert activations(checkpointing=True) < one / 3


def test_an_accelerator_is_planned_with_its_own_blocks_of_logits(model_path: Path) -> None:
    """4,096 positions, 16,384 tokens: there one block of logits is 256 MiB in float32; on a CPU blocks are 8 MiB."""
    architecture = AutoConfig.from_pretrained(model_path)
    architecture.vocab_size = 16384

    def logits(device: str) -> float:
        shape = StepShape(pairs=4, prompt=8, completion=512, device=device)
        return trace_step(architecture, shape).peak["logits"]

    block = 4096 * 16384 * 4
    assert block <= logits("cuda") < 1.1 * block
    assert logits("cpu") < block / 8


def test_models_that_packed_rows_cannot_take_are_planned_in_padded_ones() -> None:
    """Gemma 2 caps its attention scores: each of two completions carries its prompt, and the scores are kept."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    architecture = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)

    def activations(tokens: int, **changes: Any) -> float:
        shape = StepShape(prompt=tokens, completion=tokens, **changes)
        return trace_step(architecture, shape).peak["activations"]

    assert activations(512) > 3 * activations(256)  # more than twice: scores grow with the square of the length
    packed = {"dtype": torch.bfloat16}  # on a GPU: FlexAttention over one flat row
    assert activations(512, **packed) == pytest.approx(2 * activations(256, **packed), rel=0.02)
    assert architecture.attn_logit_softcapping == 50.0


@pytest.mark.parametrize("half", [{"compute": torch.bfloat16}, {"dtype": torch.float16}])
def test_attention_in_half_precision_on_a_gpu_is_planned_without_masks(model_path: Path, half: Any) -> None:
    """Twice the tokens take twice the memory; under the masks that a CPU or float32 have they take more."""
    architecture = AutoConfig.from_pretrained(model_path)

    def activations(tokens: int, **changes: Any) -> float:
        shape = StepShape(**{"prompt": tokens, "completion": tokens, **changes})
        return trace_step(architecture, shape).peak["activations"]

    assert activations(2048, **half) == pytest.approx(2 * activations(1024, **half), rel=0.01)
    assert activations(2048, **half, device="cpu") > 2.5 * activations(1024, **half, device="cpu")
    assert activations(2048) > 2.5 * activations(1024)


def test_a_mixture_of_experts_is_planned_where_its_kernel_has_rules_and_refused_where_not() -> None:
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    architecture = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    found = trace_step(architecture, StepShape(torch.bfloat16, prompt=8, completion=8))
    assert found.total == 2 * 300 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 4 * 3 * 32 * 64 + 4 * 32 + 3 * 32
    with pytest.raises(ValueError, match=r"a mixtral model in torch.float32 cannot be planned"):
        trace_step(architecture, StepShape(prompt=8, completion=8))


@pytest.mark.parametrize("changes", [{}, {"four_bit": True, "peft": {"r": 4}}])
def test_a_reward_model_has_a_value_head_and_no_logits(model_path: Path, changes: dict[str, Any]) -> None:
    """A head of 3 x 32 in the place of 300 x 32, trained in full under an adapter too, and no logits at all."""
    architecture = AutoConfig.from_pretrained(model_path)
    shape = StepShape(prompt=64, completion=64, outputs=3, **changes)
    traced = trace_step(architecture, shape)
    lora = 2 * 2 * (4 * 32 + 4 * 32) if changes else 0  # A and B of q (32 x 32) and v (32 x 16: A 4 x 32, B 16 x 4)
    lora -= 2 * 4 * 16 if changes else 0
    base = PARAMETERS - 300 * 32
    assert traced.trained == (lora + 3 * 32 if changes else base + 3 * 32)
    assert traced.peak.get("logits", 0) == 0
    plain = trace_step(architecture, StepShape(prompt=64, completion=64))
    assert sum(traced.peak.values()) < sum(plain.peak.values())
