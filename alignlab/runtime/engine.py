"""Engines: checks that a run has the one that was asked for, since libraries fall back silently; sharded scorers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from .modules import unsharded
from .zero import deepspeed_values, zero_stage

_HALF = {"bf16": "bfloat16", "fp16": "float16"}  # how DeepSpeed's configuration calls what torch calls so


def describe_engine(model: Any, ranks: int) -> dict[str, Any]:
    """Returns what really wraps ``model``: its class, its ZeRO stage if it has one, and the number of ranks."""
    stage = model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None
    return {"class": type(model).__name__, "zero_stage": stage, "ranks": ranks}


def check_engine(model: Any, deepspeed: str | dict[str, Any] | None, ranks: int, *, fsdp: bool = False) -> None:
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
    elif fsdp and not _is_fsdp2(model):
        raise RuntimeError(f"FSDP was asked for, but the model is wrapped by {engine}")
    elif not fsdp and (_is_fsdp2(model) or engine == "FullyShardedDataParallel"):
        raise RuntimeError(
            f"the model is wrapped by {engine}, but fsdp was not asked for: write fsdp: full_shard in its config; "
            "accelerate's own options (ACCELERATE_USE_FSDP) would pass by what is checked of it"
        )
    elif ranks > 1 and not fsdp and engine != "DistributedDataParallel":
        raise RuntimeError(f"{ranks} ranks were asked for, but the model ({engine}) is not wrapped for them")


def load_sharded(
    load: Callable[[str], Any],
    path: str,
    config: str | dict[str, Any],
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
) -> Any:
    """Loads a model that only scores, sharded over the ranks as it is loaded; all ranks call this, and its forwards.

    Args:
        load: loads a model from a path. config: DeepSpeed's, stage 3; of it the block ``zero_optimization`` counts,
            less what belongs to training. dtype: of the weights.
        autocast: in which it scores; an engine switches off any autocast around it that it does not know of.

    Returns:
        the ``DeepSpeedEngine``, without an optimiser.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    zero = {k: value for k, value in deepspeed_values(config)["zero_optimization"].items() if value != "auto"}
    zero.pop("offload_optimizer", None)
    settings: dict[str, Any] = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}
    settings |= {name: {"enabled": str(dtype) == f"torch.{kind}"} for name, kind in _HALF.items()}
    if autocast is not None:
        settings["torch_autocast"] = {"enabled": True, "dtype": str(autocast)}
    deepspeed.init_distributed(None if torch.accelerator.is_available() else "gloo")
    with unsharded():  # takes the policy's configuration away, and puts it back
        shards = HfDeepSpeedConfig(settings)
        model = load(path)
        engine, *_ = deepspeed.initialize(model=model, config=settings)
    del shards
    whole = [name for name, parameter in engine.named_parameters() if not hasattr(parameter, "ds_id")]
    if whole or engine.zero_optimization_stage() != 3:
        raise RuntimeError(f"{path} was to be sharded by ZeRO-3, but {len(whole)} of its weights are whole")
    return engine


def _is_fsdp2(model: Any) -> bool:
    return type(model).__name__.startswith("FSDP")
