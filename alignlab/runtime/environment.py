"""What a run stood on: package versions, the commit, Python and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("alignlab", "torch", "transformers", "trl", "datasets", "deepspeed", "bitsandbytes"),
    *("evaluate", "peft", "accelerate", "tokenizers", "safetensors"),
)


def describe_environment() -> dict[str, Any]:
    """Returns package versions, the commit of the source tree, Python and the machine."""
    return {
        "packages": dict(_versions()),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
    }


@cache
def _versions() -> dict[str, str]:
    import torch  # whose build, +cpu or +cu130, the metadata of PyPI's packages leaves out

    found = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {**found, "torch": torch.__version__}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def _commit() -> str | None:
    """Returns the git commit that alignlab is run from, "+changes" behind it if the tree differs; None if none.

    Asked once: what a process has loaded is not what the tree becomes while it runs.
    """
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
