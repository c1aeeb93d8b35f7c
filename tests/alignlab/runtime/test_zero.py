"""Ways to spread a run that cannot work are refused with the reason; an engine that is not the asked one is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import ParallelismConfig
from torch import nn

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.run import load_config
from alignlab.runtime.engine import check_engine

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


def test_parallelism_in_a_config_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"parallelism_config: not a key .* would cut rows"):
        load_config({**RUN, "parallelism_config": {"cp_size": 2}})


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


def test_fsdp_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fsdp: .* silently be DDP"):
        PreferenceConfig(output_dir=str(tmp_path), fsdp="full_shard", use_cpu=True)


def test_merging_shards_is_refused() -> None:
    run = {**RUN, "peft": {"r": 4}, "deepspeed": "zero3.json"}
    with pytest.raises(ValueError, match=r"model\.merge_adapter: under ZeRO-3"):
        load_config({**run, "model": {"name_or_path": "model", "merge_adapter": True}}).training_args()


@pytest.mark.parametrize(
    ("ranks", "asked", "message"),
    [
        (1, {"deepspeed": {"zero_optimization": {"stage": 2}}}, "stage 2 was asked for, .* Linear at stage None"),
        (1, {"deepspeed": None, "fsdp": True}, "FSDP was asked for, but the model is wrapped by Linear"),
        (2, {"deepspeed": None}, "started 1 ranks, but the run has 2"),
    ],
)
def test_an_engine_that_was_not_asked_for_is_noticed(
    ranks: int, asked: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ACCELERATE_USE_CPU and FSDP on a CPU come to: a bare or DDP model where an engine was asked for."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match=message):
        check_engine(nn.Linear(1, 1), ranks=ranks, **asked)


def test_ranks_without_a_wrapper_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"2 ranks were asked for, but the model .* is not wrapped"):
        check_engine(nn.Linear(1, 1), None, 2)
