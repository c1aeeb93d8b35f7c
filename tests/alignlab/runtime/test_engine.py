"""An engine that is not the asked one is noticed."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from alignlab.runtime.engine import check_engine


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


@pytest.mark.parametrize("name", ["FSDPLinear", "FullyShardedDataParallel"])
def test_fsdp_that_only_accelerate_s_environment_chose_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the config's check refuses, such as version 1, was looked at."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    wrapped = type(name, (nn.Linear,), {})(1, 1)
    with pytest.raises(RuntimeError, match=rf"wrapped by {name}, but fsdp was not asked for: write fsdp: full_shard"):
        check_engine(wrapped, None, 1)
    check_engine(type("FSDPLinear", (nn.Linear,), {})(1, 1), None, 1, fsdp=True)
