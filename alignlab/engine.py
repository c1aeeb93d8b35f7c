"""Checks that a run has the engine, stage and number of ranks that were asked for: libraries fall back silently."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def zero_stage(deepspeed: str | dict[str, Any] | None) -> int | None:
    """Returns the ZeRO stage that a DeepSpeed configuration (a dict or a file) asks for; None without DeepSpeed."""
    if deepspeed is None:
        return None
    config = deepspeed if isinstance(deepspeed, dict) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    return int(config.get("zero_optimization", {}).get("stage", 0))


def describe_engine(model: Any, ranks: int) -> dict[str, Any]:
    """Returns what really wraps ``model``: its class, its ZeRO stage if it has one, and the number of ranks."""
    stage = model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None
    return {"class": type(model).__name__, "zero_stage": stage, "ranks": ranks}


def check_engine(model: Any, deepspeed: str | dict[str, Any] | None, ranks: int) -> None:
    """Raises RuntimeError unless ``model`` has the engine, the stage and the ranks that were asked for."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != asked:
        raise RuntimeError(f"the launcher started {asked} ranks, but the run has {ranks}: it would train as if alone")
    stage = zero_stage(deepspeed)
    engine = type(model).__name__
    if stage is not None:
        found = describe_engine(model, ranks)["zero_stage"]
        if found != stage:
            raise RuntimeError(
                f"DeepSpeed ZeRO stage {stage} was asked for, but the model is wrapped by {engine} at stage {found}. "
                "On a machine without an accelerator set use_cpu: true"
            )
    elif ranks > 1 and engine not in ("DistributedDataParallel", "FullyShardedDataParallel") and not _is_fsdp2(model):
        raise RuntimeError(f"{ranks} ranks were asked for, but the model ({engine}) is not wrapped for them")


def _is_fsdp2(model: Any) -> bool:
    return type(model).__name__.startswith("FSDP")
