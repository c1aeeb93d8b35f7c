"""How an engine computes, told by what accelerate says of it, and imposed on models that no engine has wrapped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from making import make_model

from alignlab.runtime.numerics import Numerics, numerics_of


def accelerator(kind: str, mixed: str = "no", deepspeed: Any = None, policy: Any = None, amp: bool = True) -> Any:
    """What is read of an ``accelerate.Accelerator``."""
    return SimpleNamespace(
        distributed_type=f"DistributedType.{kind}",
        mixed_precision=mixed,
        native_amp=amp and mixed != "no" and kind != "DEEPSPEED",
        device=torch.device("cpu"),
        deepspeed_plugin=SimpleNamespace(deepspeed_config=deepspeed or {}),
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(mixed_precision_policy=policy)),
    )


AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
GATHERED = SimpleNamespace(param_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        (accelerator("NO"), "float32"),
        (accelerator("MULTI_CPU", "bf16"), "bf16"),
        (accelerator("MULTI_GPU", "fp16"), "fp16"),
        (accelerator("DEEPSPEED"), "float32"),
        (accelerator("DEEPSPEED", "bf16"), "bfloat16 weights of deepspeed"),
        (accelerator("DEEPSPEED", "fp16"), "float16 weights of deepspeed"),
        (accelerator("DEEPSPEED", deepspeed=AUTOCAST), "bf16"),
        (accelerator("FSDP"), "float32"),
        (accelerator("FSDP", "bf16", policy=GATHERED), "bfloat16 weights of fsdp under bf16 autocast"),
    ],
)
def test_every_way_to_compute_has_a_name(engine: Any, name: str) -> None:
    """The names of float32 and of autocast are those under which earlier versions kept their scores."""
    assert numerics_of(engine).name(torch.float32) == name


def test_weights_loaded_in_half_precision_and_rounded_products_have_names_of_their_own() -> None:
    rounds = numerics_of(accelerator("NO"), rounds_fp32=True)
    assert [rounds.name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32 rounded", "bfloat16"]


def test_scores_of_other_kernels_have_a_name_of_their_own() -> None:
    """They round elsewhere, in half precision visibly: a run without them must not take such scores."""
    assert Numerics(autocast=torch.bfloat16, kernels="liger").name(torch.float32) == "bf16 with liger"
    assert Numerics(kernels="liger").name(torch.float16) == "float16 with liger"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (accelerator("NO", "fp16", amp=False), r"fp16: there is no autocast for it here \(cpu\)"),
        (accelerator("NO", "fp8"), "fp8: there is no autocast for it here"),
        (accelerator("DEEPSPEED", "bf16", {"data_types": {"buffer_dtype": "bf16"}}), "data_types.buffer_dtype cannot"),
        (accelerator("DEEPSPEED", deepspeed={"torch_autocast": {"enabled": True}}), "torch_autocast.dtype: expected"),
    ],
)
def test_what_would_compute_otherwise_than_it_says_is_refused(engine: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numerics_of(engine)


def test_weights_are_cast_for_good_where_the_engine_drops_the_loaded_ones() -> None:
    """Parameters only, each rounded once; buffers, such as the frequencies of positions, stay as they are."""
    model: Any = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    Numerics("deepspeed", torch.bfloat16, stays=True).settle(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name].bfloat16())
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_weights_are_cast_for_a_while_where_the_engine_keeps_the_loaded_ones() -> None:
    """Within it as a model cast for good; after it the weights are those from before, the same memory."""
    model: Any = make_model()
    ids = torch.arange(2, 12)[None]
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in model.named_parameters()}
    numerics = Numerics("fsdp", torch.bfloat16)
    numerics.settle(model)
    assert model.dtype == torch.float32
    with numerics.applied(model), torch.no_grad():
        found = model(ids).logits
    for name, weight in model.named_parameters():
        assert weight.data_ptr() == before[name][0]
        assert torch.equal(weight, before[name][1])
    with torch.no_grad():
        assert torch.equal(found, _half(ids))


def _half(ids: torch.Tensor) -> torch.Tensor:
    model: Any = make_model()
    Numerics("deepspeed", torch.bfloat16, stays=True).settle(model)
    logits: torch.Tensor = model(ids).logits
    return logits


def test_as_loaded_nothing_is_touched() -> None:
    model: Any = make_model()
    with Numerics().applied(model):
        assert model.dtype == torch.float32
