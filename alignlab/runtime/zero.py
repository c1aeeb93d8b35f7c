"""What a run on several ranks cannot be, said before anything is loaded: cut sequences, shards nobody can merge."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_ROWS_STAY_WHOLE = (
    "every rank is dealt whole rows of its own, and a packed row, its prompt and completions, must be on one rank; "
    "allowed: DDP, ZeRO 1 to 3 with or without offload, FSDP"
)

_STAGES = (0, 1, 2, 3)
_BLOCKS = ("zero_optimization", "bf16", "fp16", "torch_autocast", "tensor_parallel", "optimizer", "scheduler")


def deepspeed_values(config: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a DeepSpeed configuration, given as it is or as a JSON file.

    Raises:
        ValueError: it is no JSON, a block has no keys, or there is no such stage; names the file and the key.
    """
    where = "deepspeed" if isinstance(config, Mapping) else f"deepspeed: {config}"
    try:
        values = config if isinstance(config, Mapping) else json.loads(Path(config).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    zero = _block(values, "", where).get("zero_optimization", {})
    for name in _BLOCKS:
        _block(values.get(name, {}), name, where)
    for name in ("offload_optimizer", "offload_param"):
        _block(zero.get(name) or {}, f"zero_optimization.{name}", where)
    stage = zero.get("stage", 0)
    if stage not in _STAGES or isinstance(stage, bool):
        raise ValueError(f"{where}: zero_optimization.stage: expected 0, 1, 2 or 3, found {stage!r}")
    return dict(values)


def _block(values: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: {name}{': ' if name else ''}expected a mapping, found {values!r}")
    return values


def zero_stage(deepspeed: str | Path | Mapping[str, Any] | None) -> int | None:
    """Returns the ZeRO stage that a DeepSpeed configuration (a dict or a file) asks for; None without DeepSpeed."""
    return None if deepspeed is None else int(deepspeed_values(deepspeed).get("zero_optimization", {}).get("stage", 0))


def check_parallel(
    deepspeed: str | dict[str, Any] | None, reference: str | dict[str, Any] | None, *, fsdp: bool, parallelism: Any
) -> None:
    """Raises a ValueError for ways to spread a run that cannot work here.

    Args:
        deepspeed: of the policy. reference: of the reference. fsdp: asked for on a CPU.
        parallelism: transformers' ``parallelism_config``, from Python or from accelerate's environment.
    """
    for name in ("tp_size", "cp_size", "sp_size"):
        if getattr(parallelism, name, 1) > 1:
            found = f"{name}: {getattr(parallelism, name)}"
            raise ValueError(f"parallelism_config: {found} cannot work here: {_ROWS_STAY_WHOLE}")
    if deepspeed is not None:
        values = deepspeed_values(deepspeed)
        parts = values.get("sequence_parallel_size", 1), values.get("tensor_parallel", {}).get("autotp_size", 0)
        for name, found in zip(("sequence_parallel_size", "tensor_parallel.autotp_size"), parts, strict=True):
            if found > 1:
                raise ValueError(f"deepspeed: {name}: {found} cannot work here: {_ROWS_STAY_WHOLE}")
    if reference is not None and zero_stage(reference) != 3:
        raise ValueError(
            f"reference_deepspeed: expected stage 3, found {zero_stage(reference)}: lower stages shard gradients and "
            "optimiser, of which a reference has none"
        )
    if fsdp:
        raise ValueError("fsdp: transformers' FSDP needs an accelerator; on a CPU it would silently be DDP: use ZeRO")


def check_launched(deepspeed: Any) -> None:
    """Refuses DeepSpeed in a process that no launcher has told its rank; it would look for MPI.

    Raises:
        ValueError: says how to start, also on one GPU.
    """
    told = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if deepspeed is not None and not told and find_spec("mpi4py") is None and not torch.distributed.is_initialized():
        raise ValueError(
            "deepspeed: needs a launcher, on one GPU too: deepspeed --num_gpus 1 launch/train.py CONFIG.yaml ..., or "
            "torchrun --nproc-per-node 1 launch/train.py CONFIG.yaml ..."
        )


def check_fsdp(asked: Any, config: Mapping[str, Any] | None, *, deepspeed: bool) -> None:
    """Raises a ValueError for FSDP other than its second version, whole, alone, with weights on every rank at first.

    Args:
        asked: the key ``fsdp``, as it was given. config: ``fsdp_config``, with or without the prefix ``fsdp_``.
        deepspeed: whether DeepSpeed is asked for as well.
    """
    if not asked:
        return
    if deepspeed:
        raise ValueError("fsdp and deepspeed are both given: choose one")
    words = {str(getattr(one, "value", one)).lower() for one in asked} if isinstance(asked, list) else set()
    words |= set(asked.lower().replace(",", " ").split()) if isinstance(asked, str) else set()
    other = sorted(words - {"full_shard", "auto_wrap", "offload", "true"})
    if other:
        raise ValueError(f"fsdp: expected full_shard, with auto_wrap or offload or without; found {' '.join(other)}")
    values = {name.removeprefix("fsdp_"): value for name, value in (config or {}).items()}
    if str(values.get("version", 2)) != "2":
        raise ValueError(
            f"fsdp_config.version: found {values['version']}, allowed: 2. The first version casts buffers as well, so "
            "that a reference scored before it shards would differ from the policy; transformers drops it too"
        )
    if str(values.get("cpu_ram_efficient_loading", False)).lower() == "true":
        raise ValueError(
            "fsdp_config.cpu_ram_efficient_loading: true cannot work here: the reference is scored before weights are "
            "sharded, when all ranks but the first would have none; allowed: false"
        )
