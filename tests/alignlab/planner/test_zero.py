"""DeepSpeed configurations, read for what they say of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.planner.zero import Zero


def test_engine_settings_are_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 100}}')
    assert Zero.read(str(tmp_path / "zero.json"), 8) == Zero(2, bucket=100)
    assert Zero.read({"zero_optimization": {"stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto"}}, 8) == (
        Zero(3, bucket=128)
    )
    assert Zero.read(None, 8) == Zero()


def test_fsdp_is_counted_as_the_third_stage(tmp_path: Path) -> None:
    assert Zero.of({"fsdp": "full_shard auto_wrap"}, 8) == Zero(3, fsdp=True)
    assert Zero.of({"fsdp": ["full_shard", "offload"]}, 8) == Zero(3, True, True, fsdp=True)
    (tmp_path / "fsdp.json").write_text('{"fsdp_cpu_offload": true}')
    assert Zero.of({"fsdp": True, "fsdp_config": str(tmp_path / "fsdp.json")}, 8) == Zero(3, True, True, fsdp=True)
    assert Zero.of({"fsdp": "", "deepspeed": {"zero_optimization": {"stage": 1}}}, 8).stage == 1


def test_a_bucket_is_a_number_above_0_or_auto() -> None:
    for size in ("x", -5, None):
        with pytest.raises(ValueError, match="reduce_bucket_size: expected more than 0, or auto, found"):
            Zero.read({"zero_optimization": {"stage": 2, "reduce_bucket_size": size}}, 8)
