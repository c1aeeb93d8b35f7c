"""What of other packages is overridden or reached into, held against tests/internals.json: what moves has a name.

`python tests/test_internals.py` writes the file anew, after somebody has looked at what moved. What the lowest version
that is allowed has otherwise stands under "older", by hand.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("internals.json")
# Reached into by name: not part of what these packages promise. Where, and what is done with it, stands beside each.
REACHED = {
    "transformers.integrations.deepspeed:_hf_deepspeed_config_weak_ref": "runtime/modules.py: put aside for twins",
    "transformers.integrations.integration_utils:INTEGRATION_TO_CALLBACK": "config/arguments.py: the trackers",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS": "scoring/kernels: attention over trees is registered",
    "transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS": "scoring/kernels: and needs no mask",
    "bitsandbytes.nn.modules:has_avx512bf16": "models/quantised.py: switched off, its repacking breaks gradients",
    "filelock._api:FileLockContext": "run/launcher.py: the descriptor of a lock, which a child process holds, too",
    "torch.utils._python_dispatch:TorchDispatchMode": "planner/trace.py: counts what a step allocates",
}


def overridden() -> dict[str, str]:
    """Returns the parameters of each method of a library's class that one of ours overrides, by its full name."""
    from transformers import Trainer, TrainingArguments

    from alignlab import PreferenceConfig, PreferenceTrainer

    found = {}
    for ours, theirs in ((PreferenceTrainer, Trainer), (PreferenceConfig, TrainingArguments)):
        for one in ours.__mro__[: ours.__mro__.index(theirs)]:
            for name in vars(one):
                base = getattr(theirs, name, None)
                if inspect.isfunction(base) and (not name.startswith("__") or name == "__post_init__"):
                    parameters = inspect.signature(base).parameters
                    found[f"transformers.{theirs.__name__}.{name}"] = ", ".join(parameters)
    return found


def reached() -> dict[str, str]:
    """Returns whether each thing that is reached into is there."""
    found = {}
    for place in REACHED:
        module, name = place.split(":")
        found[place] = "there" if hasattr(importlib.import_module(module), name) else "gone"
    return found


@pytest.mark.parametrize("kind", ["overridden", "reached"])
def test_nothing_has_moved(kind: str) -> None:
    """A failure names what is new, gone or takes other parameters: look at our override, then write the file anew."""
    file = json.loads(FILE.read_text(encoding="utf-8"))
    known, now = file[kind], {"overridden": overridden, "reached": reached}[kind]()
    moved = {
        name: (known.get(name), now.get(name))
        for name in known.keys() | now.keys()
        if now.get(name) not in (known.get(name), file["older"].get(name, known.get(name)))
    }
    assert moved == {}


if __name__ == "__main__":
    told = {"overridden": overridden(), "reached": reached(), "older": json.loads(FILE.read_text())["older"]}
    FILE.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
