"""What a DeepSpeed configuration, or FSDP, says of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignlab.config import find_config, read_yaml
from alignlab.runtime import deepspeed_values

BUCKET = 5 * 10**8  # reduce_bucket_size, where the config gives none


@dataclass(frozen=True)
class Zero:
    """What an engine does for memory: its stage, what is kept on the host, elements of a bucket.

    FSDP2 shards weights, gradients and optimiser states as ZeRO's third stage does, and is counted as that: with half
    precision it keeps float32 weights too, the ones that it shards. It reduces gradients layer by layer, in no bucket.
    """

    stage: int = 0
    offload_optimiser: bool = False
    offload_weights: bool = False
    bucket: int = 0
    fsdp: bool = False

    @classmethod
    def of(cls, training: Mapping[str, Any], width: int) -> Zero:
        """Reads what a training block says, of ``deepspeed`` or of ``fsdp``; ``width`` is the model's."""
        asked, config = training.get("fsdp"), training.get("fsdp_config") or {}
        if not asked:
            return cls.read(training.get("deepspeed"), width)
        values = config if isinstance(config, dict) else read_yaml(find_config(config))
        said = {name.removeprefix("fsdp_"): value for name, value in values.items()}
        offload = "offload" in str(asked).lower() or str(said.get("cpu_offload", False)).lower() == "true"
        return cls(3, offload, offload, fsdp=True)

    @classmethod
    def read(cls, deepspeed: Any, width: int) -> Zero:
        """Reads a configuration: a dict, a file, or the name of a shipped one; None is no DeepSpeed."""
        if deepspeed is None:
            return cls()
        zero = deepspeed_values(deepspeed if isinstance(deepspeed, dict) else find_config(deepspeed))
        zero = zero.get("zero_optimization", {})
        size = zero.get("reduce_bucket_size", BUCKET)
        if size != "auto" and (not isinstance(size, (int, float)) or not size > 0):
            raise ValueError(
                f"deepspeed: zero_optimization.reduce_bucket_size: expected more than 0, or auto, found {size!r}"
            )
        count = (2 if zero.get("overlap_comm") else 1) * (width**2 if size == "auto" else int(size))

        def on_host(name: str) -> bool:
            return str((zero.get(name) or {}).get("device", "none")) != "none"

        return cls(int(zero.get("stage", 0)), on_host("offload_optimizer"), on_host("offload_param"), count)
