"""What a config leaves to the machine is decided by facts about it, once, and can be overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.automatic import decide, four_bit_dtype
from alignlab.config.options import ModelOptions
from alignlab.runtime.machine import Machine

GPU = Machine("cuda", "a GPU", bf16=True, tf32=True, memory=80.0)
OLD = Machine("cuda", "an old GPU", memory=16.0)
AUTO = {"bf16": "auto", "float32_matmul_precision": "auto", "gradient_checkpointing": "auto"}


def values(machine: Machine, **training: Any) -> dict[str, Any]:
    return {name: value for name, (value, _) in decide({**AUTO, **training}, machine).items()}


@pytest.mark.parametrize(
    ("machine", "bf16", "precision"), [(GPU, True, "high"), (OLD, False, None), (Machine(), False, None)]
)
def test_half_precision_and_tf32_where_the_device_has_them(machine: Machine, bf16: bool, precision: Any) -> None:
    """Never on a CPU, whose numbers stay what they were; whether a run fits without checkpoints takes a plan."""
    assert values(machine) == {
        "bf16": bf16,
        "float32_matmul_precision": precision,
        "gradient_checkpointing": False,
    }


def test_what_is_said_is_not_decided() -> None:
    assert decide({"bf16": False, "float32_matmul_precision": None, "gradient_checkpointing": True}, GPU) == {}
    assert values(GPU, fp16=True)["bf16"] is False
    assert values(GPU, tf32=False)["float32_matmul_precision"] is None


@pytest.mark.parametrize(
    ("said", "bf16"),
    [
        ({"bf16": {"enabled": "auto"}}, True),
        ({"bf16": {"enabled": False}}, False),
        ({"fp16": {"enabled": True}}, False),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, False),
        ({}, True),
    ],
)
def test_an_engine_that_says_its_precision_is_followed(said: Any, bf16: bool, tmp_path: Path) -> None:
    """A DeepSpeed configuration as a mapping or as a file; accelerate would refuse one that contradicts."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(said))
    assert values(GPU, deepspeed=said)["bf16"] is bf16
    assert values(GPU, deepspeed=str(file))["bf16"] is bf16
    assert values(Machine(), deepspeed={"bf16": {"enabled": True}})["bf16"] is True


@pytest.mark.parametrize(
    ("options", "machine", "dtype"),
    [
        ({}, GPU, "bfloat16"),
        ({}, OLD, "float32"),
        ({}, Machine(), "float32"),
        ({"dtype": "float16"}, OLD, "float16"),
        ({"dtype": "auto"}, Machine(), "float32"),
        ({"bnb_4bit_compute_dtype": "float32"}, GPU, "float32"),
    ],
)
def test_four_bit_weights_are_computed_with_in_bfloat16_on_a_gpu(options: Any, machine: Machine, dtype: str) -> None:
    assert four_bit_dtype(ModelOptions("model", **options), machine) == dtype


def test_arguments_made_from_python_are_decided_when_they_are_made(tmp_path: Path) -> None:
    """Here on a CPU: nothing that the Trainer reads says "auto" any more."""
    args = PreferenceConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.bf16, args.gradient_checkpointing, args.float32_matmul_precision) == (False, False, None)
    assert args.optim == "adamw_torch_fused"
