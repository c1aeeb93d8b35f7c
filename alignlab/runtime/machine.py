"""What the machine of a rank can do, as far as defaults depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """Facts about the device that a rank trains on.

    Attributes:
        accelerator: as torch calls its kind ("cuda", "xpu", ...); "cpu" without one.
        name: of the device, for people.
        bf16: it multiplies in bfloat16 itself, not by emulation. tf32: and float32 in TF32.
        memory: of the device, in GB (1e9 bytes); 0 on a CPU, or where it is not known.
    """

    accelerator: str = "cpu"
    name: str = "CPU"
    bf16: bool = False
    tf32: bool = False
    memory: float = 0.0

    @property
    def accelerated(self) -> bool:
        """True with an accelerator."""
        return self.accelerator != "cpu"


def this_machine(*, use_cpu: bool = False) -> Machine:
    """Returns what torch says of this rank's device; of kinds other than CUDA's nothing is assumed but the kind."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if use_cpu or kind is None or kind.type == "cpu":
        return Machine()
    if kind.type != "cuda":
        return Machine(kind.type, kind.type)
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    tf32 = torch.version.hip is None and device.major >= 8
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine("cuda", device.name, bf16, tf32, device.total_memory / 1e9)
