"""Ways to spread a run that cannot work are refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate import ParallelismConfig

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.run import load_config
from alignlab.planner.zero import Zero
from alignlab.runtime.zero import check_fsdp, check_launched, zero_stage

RUN: dict[str, Any] = {
    "loss": {"name": "dpo"},
    "model": {"name_or_path": "model"},
    "data": {"train": "rows.jsonl"},
    "output_dir": "run",
}


@pytest.mark.parametrize("parts", [{"cp_size": 2}, {"tp_size": 2}])
def test_parallelism_that_cuts_rows_is_refused(parts: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallelism_config: .p_size: 2 .* every rank is dealt whole rows"):
        PreferenceConfig(output_dir=str(tmp_path), parallelism_config=ParallelismConfig(**parts))


@pytest.mark.parametrize(
    ("block", "named"),
    [({"sequence_parallel_size": 2}, "sequence_parallel_size: 2"), ({"tensor_parallel": {"autotp_size": 4}}, "autotp")],
)
def test_deepspeeds_own_parallelism_is_refused(block: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"deepspeed: .*{named}.* whole rows"):
        PreferenceConfig(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 2}, **block})


def test_a_reference_is_sharded_at_stage_3_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference_deepspeed: expected stage 3, found 2"):
        load_config({**RUN, "reference_deepspeed": "zero2.json"}).training_args()
    args = load_config({**RUN, "reference_deepspeed": "zero3_offload.json"}).training_args()
    assert Path(str(args.reference_deepspeed)).name == "zero3_offload.json"
    assert args.deepspeed is None


def test_deepspeed_without_a_launcher_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look for MPI; a process with its rank, or without DeepSpeed, is let through."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    check_launched(None)
    with pytest.raises(
        ValueError, match=r"^deepspeed: needs a launcher, on one GPU too: deepspeed --num_gpus 1 launch/"
    ):
        check_launched("zero2.json")
    for name in names:
        monkeypatch.setenv(name, "0")
    check_launched("zero2.json")


def test_fsdp_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fsdp: .* silently be DDP"):
        PreferenceConfig(output_dir=str(tmp_path), fsdp="full_shard", use_cpu=True)


@pytest.mark.parametrize(
    ("asked", "config", "deepspeed", "message"),
    [
        ("full_shard", {}, True, "fsdp and deepspeed are both given"),
        (
            "shard_grad_op auto_wrap",
            {},
            False,
            "fsdp: expected full_shard, with auto_wrap or offload",
        ),
        ("full_shard", {"fsdp_version": 1}, False, r"fsdp_config\.version: found 1, allowed: 2"),
        (True, {"version": "1"}, False, r"fsdp_config\.version: found 1, allowed: 2"),
        ("full_shard", {"cpu_ram_efficient_loading": "true"}, False, "all ranks but the first would have none"),
    ],
)
def test_fsdp_that_cannot_work_is_refused(asked: Any, config: Any, deepspeed: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fsdp(asked, config, deepspeed=deepspeed)


@pytest.mark.parametrize("asked", ["full_shard", "full_shard auto_wrap", ["full_shard"], True, None, ""])
def test_fsdp_of_the_second_version_is_taken_where_there_is_an_accelerator(asked: Any, tmp_path: Path) -> None:
    """What is asked for passes; on a CPU the arguments are refused all the same, for they would be DDP."""
    check_fsdp(asked, {"version": 2}, deepspeed=False)
    check_fsdp(asked, None, deepspeed=False)
    check_fsdp(None, {"version": 1}, deepspeed=True)
    if asked:
        with pytest.raises(ValueError, match="fsdp: transformers' FSDP needs an accelerator"):
            PreferenceConfig(output_dir=str(tmp_path), fsdp=asked, use_cpu=True)


def test_arguments_check_the_version_of_fsdp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fsdp_config\.version: found 1, allowed: 2"):
        PreferenceConfig(output_dir=str(tmp_path), fsdp="full_shard", fsdp_config={"version": 1}, use_cpu=True)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"zero_optimization": 3}, "zero_optimization: expected a mapping, found 3"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found 7"),
        ({"zero_optimization": {"stage": "x"}}, "zero_optimization.stage: expected 0, 1, 2 or 3, found 'x'"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}},
            "zero_optimization.offload_optimizer: expected a mapping, found 'cpu'",
        ),
        ({"bf16": True}, "bf16: expected a mapping, found True"),
        ([], "expected a mapping, found []"),
    ],
)
def test_a_deepspeed_configuration_of_another_shape_is_named(found: Any, message: str, tmp_path: Path) -> None:
    """Planning and training ended in an AttributeError; a plan took stage 7 for what it is not."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(found))
    for read in (zero_stage, lambda one: Zero.read(one, 8)):
        with pytest.raises(ValueError, match=rf"^{re.escape(f'deepspeed: {file}: {message}')}$"):
            read(str(file))
    if isinstance(found, dict):
        with pytest.raises(ValueError, match=rf"^{re.escape(f'deepspeed: {message}')}$"):
            PreferenceConfig(output_dir=str(tmp_path), deepspeed=found)


def test_a_broken_deepspeed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{'stage': 2}")
    with pytest.raises(ValueError, match=rf"^deepspeed: {tmp_path}/zero.json: not valid JSON: "):
        zero_stage(tmp_path / "zero.json")
