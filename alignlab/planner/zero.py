"""What a DeepSpeed configuration says of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignlab.config import find_config, read_yaml

BUCKET = 5 * 10**8  # reduce_bucket_size, where the config gives none


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed configuration says of memory: stage, what is kept on the host, elements of a bucket."""

    stage: int = 0
    offload_optimiser: bool = False
    offload_weights: bool = False
    bucket: int = 0

    @classmethod
    def read(cls, deepspeed: Any, width: int) -> Zero:
        """Reads a configuration: a dict, a file, or the name of a shipped one; None is no DeepSpeed."""
        if deepspeed is None:
            return cls()
        values = deepspeed if isinstance(deepspeed, dict) else read_yaml(find_config(deepspeed))
        zero = values.get("zero_optimization", {})
        size = zero.get("reduce_bucket_size", BUCKET)
        count = (2 if zero.get("overlap_comm") else 1) * (width**2 if size == "auto" else int(size))

        def on_host(name: str) -> bool:
            return str((zero.get(name) or {}).get("device", "none")) != "none"

        return cls(int(zero.get("stage", 0)), on_host("offload_optimizer"), on_host("offload_param"), count)
