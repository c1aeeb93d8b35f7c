"""The chunked head: values, gradients and memory against the plain way, and the proof of what a model's head is."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module
from making import make_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
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
from alignlab.scoring.chunked import Head, chunked_scores, worthwhile
from alignlab.scoring.head import head_of, hidden_positions, score_positions

VALUES = ("logps", "kl", "second_moment")
FORMS = {"plain": (1.0, None, False), "bias": (1.0, None, True), "scale": (0.25, None, False), "cap": (1.5, 2.0, True)}


def make_head(vocabulary: int, form: str = "plain", dtype: torch.dtype = torch.float32, size: int = 8) -> Head:
    scale, cap, bias = FORMS[form]
    linear = nn.Linear(size, vocabulary, bias=bias, dtype=dtype)
    nn.init.normal_(linear.weight)
    return Head(linear, scale, cap)


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = F.linear(hidden, head.module.weight, head.module.bias) * head.scale
    logits = logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)
    return logits if logits.dtype == torch.float64 else logits.float()


def plain_scores(hidden: Tensor, target: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head) -> dict[str, Tensor]:
    logps = torch.log_softmax(plain_logits(hidden, head), -1)
    ref = torch.log_softmax(plain_logits(ref_hidden, ref_head), -1).detach()
    return {
        "logps": logps.gather(1, target[:, None])[:, 0],
        "kl": (ref.exp() * (ref - logps)).sum(-1),
        "second_moment": (2 * logps).logsumexp(-1),
    }


def both_ways(rows: int, vocabulary: int, form: str, dtype: torch.dtype, **chunks: int) -> list[dict[str, Tensor]]:
    """Returns values and gradients of a random weighted sum of all values: the plain way's, the chunked way's."""
    torch.manual_seed(0)
    head, ref_head = make_head(vocabulary, form, dtype), make_head(vocabulary, form, dtype)
    hidden = torch.randn(rows, 8, dtype=dtype, requires_grad=True)
    ref_hidden, target = torch.randn(rows, 8, dtype=dtype), torch.randint(vocabulary, (rows,))
    weights = torch.randn(3, rows)
    found = []
    for scores in (
        plain_scores(hidden, target, head, ref_hidden, ref_head),
        chunked_scores(
            hidden,
            target,
            head,
            ref_hidden=ref_hidden,
            ref_head=ref_head,
            want_kl=True,
            want_second_moment=True,
            **chunks,
        ),
    ):
        inputs = [hidden, *head.module.parameters()]
        grads = torch.autograd.grad((weights * torch.stack([scores[v] for v in VALUES])).sum(), inputs)
        found.append(scores | dict(zip(("hidden", "weight", "bias"), grads, strict=False)))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "vocabulary"), [(7, 11), (1, 11), (7, 3)])
def test_float32_equals_the_plain_way(rows: int, vocabulary: int, form: str) -> None:
    """Blocks of 3 x 4: they divide neither 7 nor 11; one row; a vocabulary smaller than a block."""
    plain, chunked = both_ways(rows, vocabulary, form, torch.float32, row_chunk=3, vocab_chunk=4)
    assert plain.keys() == chunked.keys()
    for name in plain:
        assert chunked[name].dtype == torch.float32
        torch.testing.assert_close(chunked[name], plain[name], rtol=1e-5, atol=3e-6)


def test_blocks_larger_than_everything_give_the_same() -> None:
    plain, chunked = both_ways(7, 11, "cap", torch.float64)
    for name in plain:
        torch.testing.assert_close(chunked[name], plain[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, value: str) -> None:
    """Each value's derivative in hidden states, weight and bias against finite differences, in float64."""
    torch.manual_seed(0)
    head, ref_head = make_head(7, form, torch.float64, 4), make_head(7, form, torch.float64, 4)
    ref_hidden, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])

    def scores(hidden: Tensor, *_: Tensor) -> Tensor:
        found = chunked_scores(
            hidden,
            target,
            head,
            ref_hidden=ref_hidden,
            ref_head=ref_head,
            want_kl=value == "kl",
            want_second_moment=value == "second_moment",
            row_chunk=2,
            vocab_chunk=3,
        )
        return found[value]

    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scores, (hidden, *head.module.parameters()))


def test_log_probability_by_hand() -> None:
    """h = (1,), W = (0, ln 2, ln 5)^T: p = (1, 2, 5)/8, so log p_2 = ln(5/8) and log sum p^2 = ln(30/64).

    Reference uniform: KL = ln(1/3) - mean(ln p) = ln(8/3) - ln(10)/3. Its gradient in the logits is p - q; that of
    log p_2 is onehot - p; in h: (5/8 - 1/3) ln 5 + (2/8 - 1/3) ln 2, and (1 - 5/8) ln 5 - 2/8 ln 2.
    """
    ln2, ln3, ln5 = math.log(2), math.log(3), math.log(5)
    head, uniform = (Head(nn.Linear(1, 3, bias=False, dtype=torch.float64)) for _ in range(2))
    with torch.no_grad():
        head.module.weight.copy_(torch.tensor([[0.0], [ln2], [ln5]], dtype=torch.float64))
        uniform.module.weight.zero_()
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    found = chunked_scores(
        hidden,
        torch.tensor([2]),
        head,
        ref_hidden=hidden,
        ref_head=uniform,
        want_kl=True,
        want_second_moment=True,
        vocab_chunk=2,
    )
    assert found["logps"].item() == pytest.approx(ln5 - 3 * ln2, abs=1e-14)
    assert found["kl"].item() == pytest.approx(3 * ln2 - ln3 - (ln2 + ln5) / 3, abs=1e-14)
    assert found["second_moment"].item() == pytest.approx(math.log(30 / 64), abs=1e-14)
    by_kl, by_logp = (torch.autograd.grad(found[name], hidden, retain_graph=True)[0].item() for name in ("kl", "logps"))
    assert by_kl == pytest.approx((5 / 8 - 1 / 3) * ln5 + (2 / 8 - 1 / 3) * ln2, abs=1e-14)
    assert by_logp == pytest.approx((1 - 5 / 8) * ln5 - 2 / 8 * ln2, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_of_equal_models_is_exactly_zero(dtype: torch.dtype) -> None:
    """Its gradient too. Logits up to about 100, so that neither is zero by smallness."""
    torch.manual_seed(0)
    head, hidden = make_head(50, "plain", dtype), (10 * torch.randn(9, 8)).to(dtype).requires_grad_()
    options: dict[str, Any] = {"ref_hidden": hidden, "ref_head": head, "want_kl": True}
    kl = chunked_scores(hidden, torch.zeros(9, dtype=torch.long), head, **options, row_chunk=4, vocab_chunk=7)["kl"]
    assert kl.tolist() == [0.0] * 9
    assert torch.autograd.grad(kl.sum(), hidden)[0].abs().max() == 0.0


def test_extreme_logits_stay_finite() -> None:
    """The best token 2000 above the rest, in the last block: log p = 0 there, -2000 elsewhere, gradients finite."""
    head = Head(nn.Linear(1, 5, bias=False))
    with torch.no_grad():
        head.module.weight.copy_(torch.tensor([[-1000.0], [-1000.0], [-1000.0], [-1000.0], [1000.0]]))
    hidden = torch.ones(2, 1, requires_grad=True)
    found = chunked_scores(hidden, torch.tensor([4, 0]), head, want_second_moment=True, vocab_chunk=2)
    assert found["logps"].tolist() == [0.0, -2000.0]
    assert found["second_moment"].tolist() == [0.0, 0.0]
    assert torch.autograd.grad(found["logps"].sum(), hidden)[0].tolist() == [[0.0], [-2000.0]]


def half_precision_errors(autocast: bool) -> dict[str, tuple[float, float]]:
    """Returns name -> error of the plain and of the chunked way in bf16, relative to float64 on the same numbers."""
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    head, ref_head = make_head(3000, size=64), make_head(3000, size=64)
    numbers = [0.2 * torch.randn(96, 64), 0.2 * torch.randn(96, 64)]
    for values in [*numbers, head.module.weight.data, ref_head.module.weight.data]:
        values.copy_(values.bfloat16())  # the same numbers in every dtype
    target, weights = torch.randint(3000, (96,)), torch.randn(2, 96)

    def run(dtype: torch.dtype, autocast: bool, chunked: bool) -> dict[str, Tensor]:
        head.module.to(dtype), ref_head.module.to(dtype)
        hidden, ref_hidden = numbers[0].to(dtype).requires_grad_(), numbers[1].to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if chunked:
                options: dict[str, Any] = {"row_chunk": 40, "vocab_chunk": 256, "want_kl": True}
                found = chunked_scores(hidden, target, head, ref_hidden=ref_hidden, ref_head=ref_head, **options)
            else:
                found = plain_scores(hidden, target, head, ref_hidden, ref_head)
        loss = (weights[0] * found["logps"] + weights[1] * found["kl"]).sum()
        grads = torch.autograd.grad(loss, [hidden, head.module.weight])
        return {"logps": found["logps"], "kl": found["kl"], "hidden": grads[0], "weight": grads[1]}

    exact = run(torch.float64, False, False)
    plain, chunked = run(dtype, autocast, False), run(dtype, autocast, True)

    def error(found: Tensor, truth: Tensor) -> float:
        return float((found.double() - truth).norm() / truth.norm())

    return {name: (error(plain[name], exact[name]), error(chunked[name], exact[name])) for name in exact}


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_errors_are_no_worse_than_the_plain_ways(autocast: bool) -> None:
    """Under autocast none is larger. In pure bf16 a gradient is rounded thrice (dz, block, sum), the plain one twice
    (dz, sum): sqrt(3 / 2) = 1.22 of its error; adding up blocks in bf16 would make that 2.
    """
    for name, (plain, chunked) in half_precision_errors(autocast).items():
        factor = 1.3 if name in ("hidden", "weight") and not autocast else 1.001
        assert 0 < chunked <= factor * plain < 0.004, (name, plain, chunked)


def test_autocast_multiplies_in_its_dtype_and_sums_in_float32() -> None:
    """Float32 weights under autocast give exactly what bf16 copies of them give, as float32; float64 is left alone."""
    torch.manual_seed(0)
    head, hidden, target = make_head(40), torch.randn(6, 8), torch.randint(40, (6,))
    copy = Head(nn.Linear(8, 40, bias=False, dtype=torch.bfloat16))
    copy.module.weight.data.copy_(head.module.weight)
    outside = chunked_scores(hidden, target, head)["logps"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = chunked_scores(hidden, target, head)["logps"]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, chunked_scores(hidden.bfloat16(), target, copy)["logps"])
    assert (inside - outside).abs().max() > 1e-4
    double = make_head(40, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert chunked_scores(hidden.double(), target, double)["logps"].dtype == torch.float64


def test_frozen_weight_gets_no_gradient_and_no_grad_makes_no_graph() -> None:
    head, hidden, target = make_head(11), torch.randn(3, 8, requires_grad=True), torch.tensor([1, 2, 3])
    head.module.requires_grad_(False)
    chunked_scores(hidden, target, head)["logps"].sum().backward()
    assert head.module.weight.grad is None
    assert hidden.grad is not None
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert chunked_scores(hidden, target, head)["logps"].grad_fn is None


def test_reference_hidden_states_may_come_from_inference_mode() -> None:
    head, hidden = make_head(11), torch.randn(3, 8, requires_grad=True)
    with torch.inference_mode():
        ref_hidden = torch.randn(3, 8) * 2
    kl = chunked_scores(hidden, torch.tensor([1, 2, 3]), head, ref_hidden=ref_hidden, ref_head=head, want_kl=True)["kl"]
    assert torch.autograd.grad(kl.sum(), hidden)[0].abs().max() > 0


def test_no_position_and_a_target_outside_of_the_vocabulary() -> None:
    """No position: empty values, zero gradient. A target that no block holds is NaN, not a number of some other."""
    head, hidden = make_head(11), torch.randn(0, 8, requires_grad=True)
    empty = chunked_scores(hidden, torch.zeros(0, dtype=torch.long), head, want_second_moment=True)
    assert [value.shape for value in empty.values()] == [(0,), (0,)]
    empty["logps"].sum().backward()
    assert head.module.weight.grad is not None
    assert head.module.weight.grad.abs().max() == 0
    found = chunked_scores(torch.randn(2, 8), torch.tensor([3, 11]), head)["logps"]
    assert found.isnan().tolist() == [False, True]


def test_shapes_that_do_not_fit_are_refused() -> None:
    head, hidden, target = make_head(11), torch.randn(3, 8), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=r"\[M, D\] and target \[M\], found \(3, 8\) and \(2,\)"):
        chunked_scores(hidden, target[:2], head)
    with pytest.raises(ValueError, match="want_kl needs"):
        chunked_scores(hidden, target, head, want_kl=True)
    with pytest.raises(ValueError, match="11 and 12 tokens"):
        chunked_scores(hidden, target, head, want_kl=True, ref_hidden=hidden, ref_head=make_head(12))
    head.module.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="it is sharded"):
        chunked_scores(hidden, target, head)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, as long as they live: the peak, and the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(a.untyped_storage()) for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self.live and id(storage) not in given:
                self.live[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, id(storage), None)
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def peak_bytes(positions: int, vocabulary: int, *, kl: bool = False, dense: bool = False, trained: bool = False) -> int:
    """Returns the peak above hidden states and weights of a forward and backward, in blocks of 64 x 2048."""
    head = Head(nn.Linear(16, vocabulary, bias=False).requires_grad_(trained))
    hidden, target = torch.randn(positions, 16, requires_grad=True), torch.zeros(positions, dtype=torch.long)
    options: dict[str, Any] = (
        {"ref_hidden": torch.randn(positions, 16), "ref_head": head, "want_kl": True} if kl else {}
    )
    with LiveBytes() as bytes_:
        if dense:
            value = F.cross_entropy(F.linear(hidden, head.module.weight), target)
        else:
            found = chunked_scores(hidden, target, head, row_chunk=64, vocab_chunk=2048, **options)
            value = torch.stack([v.sum() for v in found.values()]).sum()
        value.backward()
    return int(bytes_.peak)


BLOCK = 64 * 2048 * 4  # 512 KiB
ROW_BYTES = 16 * 4 + 16 * 4 + 200  # two gradients of a hidden state, and less than 50 numbers


@pytest.mark.parametrize("vocabulary", [32_768, 131_072])
@pytest.mark.parametrize("kl", [False, True])
def test_memory_grows_with_the_block_not_with_positions_times_vocabulary(vocabulary: int, kl: bool) -> None:
    """At most 2.1 blocks live at once (4.1 with the KL) plus what each row keeps; at 128k as at 32k.

    The plain way holds at least two [M, V] of float32: logits and their gradient.
    """
    peaks = {rows: peak_bytes(rows, vocabulary, kl=kl) for rows in (64, 256)}
    for rows, peak in peaks.items():
        assert BLOCK <= peak <= (4.1 if kl else 2.1) * BLOCK + rows * ROW_BYTES, (rows, peak)
    assert peaks[256] - peaks[64] <= 192 * ROW_BYTES
    assert peak_bytes(64, vocabulary, kl=kl) == peak_bytes(64, 8192, kl=kl)
    assert peak_bytes(64, 32_768, dense=True) >= 2 * 64 * 32_768 * 4


def test_memory_of_a_trained_head_adds_one_weight() -> None:
    """Its gradient [V, D], and the sum of one block of the vocabulary."""
    added = peak_bytes(64, 32_768, trained=True) - peak_bytes(64, 32_768)
    assert 32_768 * 16 * 4 <= added <= (32_768 + 3 * 2048) * 16 * 4


def test_worthwhile_by_size() -> None:
    assert not worthwhile(750, 8192)
    assert worthwhile(750, 8192, kl=True)
    assert worthwhile(750, 32_768)
    assert not worthwhile(16, 131_072)


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
    found, output = score_positions(model, inputs, positions, target, head, row_chunk=3, vocab_chunk=40)
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


def test_after_scoring_the_model_is_as_before() -> None:
    model = make_model().eval()
    head, ids = head_of(model), torch.randint(300, (1, 5))
    assert head is not None
    before = model(input_ids=ids).logits
    score_positions(model, {"input_ids": ids}, torch.tensor([2]), torch.tensor([7]), head)
    with pytest.raises(IndexError):
        score_positions(model, {"input_ids": ids}, torch.tensor([9]), torch.tensor([7]), head)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(model.lm_head)
    assert not model.lm_head._forward_hooks


def test_kl_from_hidden_states_of_a_reference_under_lora_and_gradient_checkpointing() -> None:
    """LoRA policy against its base with the adapter off: values and gradients as from whole logits."""
    policy = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable()
    policy.train()
    head, ids = head_of(policy), torch.randint(300, (2, 6))
    assert head is not None
    assert not head.module.weight.requires_grad
    inputs, positions, target = {"input_ids": ids}, torch.tensor([0, 3, 9]), torch.tensor([7, 8, 9])
    with torch.inference_mode(), policy.disable_adapter():
        ref_hidden = hidden_positions(policy, inputs, positions)
    assert ref_hidden.shape == (3, 32)
    options: dict[str, Any] = {"want_kl": True, "want_second_moment": True}
    found, _ = score_positions(policy, inputs, positions, target, head, ref_hidden=ref_hidden, ref_head=head, **options)
    with torch.no_grad(), policy.disable_adapter():
        ref = torch.log_softmax(policy(**inputs).logits.reshape(12, -1)[positions], -1)
    logps = torch.log_softmax(policy(**inputs).logits.reshape(12, -1)[positions], -1)
    plain = {
        "logps": logps[range(3), target],
        "kl": (ref.exp() * (ref - logps)).sum(-1),
        "second_moment": (2 * logps).logsumexp(-1),
    }
    assert plain["kl"].min() > 1e-4
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-6)
    adapters = [p for p in policy.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(torch.stack(list(s.values())).sum(), adapters) for s in (found, plain))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-8)


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


def test_scores_inside_a_head_that_accelerate_dispatched() -> None:
    """Its hook wraps the module's forward (quantised models on a GPU have one), and still runs, once."""
    model, ids = make_model(), torch.randint(300, (1, 5))
    head = head_of(model)
    assert head is not None
    plain, _ = score_positions(model, {"input_ids": ids}, torch.tensor([1, 3]), torch.tensor([7, 8]), head)
    seen: list[tuple[int, ...]] = []

    class Watch(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(args[0].shape)
            return args, kwargs

    add_hook_to_module(model.lm_head, Watch())
    hooked, _ = score_positions(model, {"input_ids": ids}, torch.tensor([1, 3]), torch.tensor([7, 8]), head)
    assert torch.equal(hooked["logps"], plain["logps"])
    assert seen == [(1, 5, 32)]
    assert head_of(model) == head
    assert model(input_ids=ids).logits.shape == (1, 5, 300)


ENGINES = """
import copy, os, sys
sys.path.insert(0, sys.argv[1])
import deepspeed, torch
from deepspeed.utils import safe_get_full_grad
from making import make_model
from torch.nn.parallel import DistributedDataParallel
from alignlab.scoring.head import head_of, hidden_positions, score_positions

deepspeed.init_distributed("gloo")
for tied in (False, True):
    plain = make_model(tie_word_embeddings=tied)
    ddp = DistributedDataParallel(copy.deepcopy(plain), find_unused_parameters=True)
    sharded = copy.deepcopy(plain)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "gradient_clipping": 0}
    config["zero_allow_untested_optimizer"] = True
    optimiser = torch.optim.SGD(sharded.parameters(), 0.1)
    engine, *_ = deepspeed.initialize(model=sharded, optimizer=optimiser, config=config)
    models = {"plain": plain, "ddp": ddp, "zero3": engine}
    optimisers = {name: torch.optim.SGD(models[name].parameters(), 0.1) for name in ("plain", "ddp")}
    heads = {name: head_of(model) for name, model in models.items()}
    assert all(head is not None and head.tied == tied for head in heads.values()), heads
    assert sharded.lm_head.weight.shape == (0,), "nothing is sharded"
    for step in range(3):
        ids = torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(step))
        inputs, positions, target = {"input_ids": ids}, torch.tensor([1, 4, 9]), torch.tensor([5, 6, 7])
        losses = {}
        for name, model in models.items():
            with torch.no_grad():
                hidden = hidden_positions(model, inputs, positions)
            values, _ = score_positions(model, inputs, positions, target, heads[name], want_kl=True,
                want_second_moment=True, ref_hidden=hidden * 1.1, ref_head=heads[name], vocab_chunk=64)
            loss = (values["kl"] + values["second_moment"] - values["logps"]).mean()
            losses[name] = loss.item()
            engine.backward(loss) if name == "zero3" else loss.backward()
        triples = zip(plain.named_parameters(), ddp.parameters(), sharded.parameters(), strict=True)
        for (name, one), two, three in triples:
            size = one.grad.abs().max()
            for other in (two.grad, safe_get_full_grad(three)):
                assert (other - one.grad).abs().max() <= 1e-5 * size, (step, name)
        engine.step()
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        assert max(losses.values()) - min(losses.values()) < 1e-5, losses
        print("LOSS", tied, step, losses["zero3"], flush=True)
sys.stdout.flush()
os._exit(0)
"""


def test_ddp_and_zero3_give_the_gradients_of_one_process() -> None:
    """Three steps, head tied and not: ZeRO-3 gathers the weight for forward and backward; DDP finds all parameters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, "-c", ENGINES, str(Path(__file__).parents[2])]
    env = os.environ | ranks | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("LOSS")]
    assert len(set(losses)) == 6, "the weights move"
