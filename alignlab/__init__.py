"""Preference alignment of language models: any loss, any speed-up, any scale, with proof."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelOptions, PreferenceConfig, RunConfig, load_config
    from .run import train
    from .training import PreferenceTrainer

__version__ = version("alignlab")
__all__ = ["ModelOptions", "PreferenceConfig", "PreferenceTrainer", "RunConfig", "__version__", "load_config", "train"]

_HOMES = {
    "ModelOptions": "config",
    "PreferenceConfig": "config",
    "RunConfig": "config",
    "load_config": "config",
    "train": "run",
    "PreferenceTrainer": "training",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: ``alignlab --help`` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
