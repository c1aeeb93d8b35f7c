"""What a run is told, typed and checked, from Python or from YAML.

Never here: a model or a row: what is told is checked before anything is opened.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .options import DataConfig, Dtype, ModelOptions, holds_adapter
from .parser import (
    Key,
    Schema,
    Values,
    block_of,
    parse_yaml,
    read_yaml,
    readable_type,
    split_command_line,
    unknown_key,
    write_yaml,
)
from .places import check_places, is_written, models_of
from .recipes import Recipe, find_recipe, read_recipe, recipes
from .resuming import CANNOT, CHANGES, HARMLESS, KINDS, Difference, differences, kind_of, makes_another_run

if TYPE_CHECKING:
    from .arguments import PreferenceConfig
    from .automatic import AUTO, DECIDED, checkpoints_activations, decide, four_bit_dtype
    from .checks import duration
    from .importing import Imported, import_config
    from .run import RunConfig, find_config, load_config, schema
    from .typed import check_type

__all__ = [
    "AUTO",
    "CANNOT",
    "CHANGES",
    "DECIDED",
    "HARMLESS",
    "KINDS",
    "DataConfig",
    "Difference",
    "Dtype",
    "Imported",
    "Key",
    "ModelOptions",
    "PreferenceConfig",
    "Recipe",
    "RunConfig",
    "Schema",
    "Values",
    "block_of",
    "check_places",
    "check_type",
    "checkpoints_activations",
    "decide",
    "differences",
    "duration",
    "find_config",
    "find_recipe",
    "four_bit_dtype",
    "holds_adapter",
    "import_config",
    "is_written",
    "kind_of",
    "load_config",
    "makes_another_run",
    "models_of",
    "parse_yaml",
    "read_recipe",
    "read_yaml",
    "readable_type",
    "recipes",
    "schema",
    "split_command_line",
    "unknown_key",
    "write_yaml",
]

_HOMES = {
    "AUTO": "automatic",
    "DECIDED": "automatic",
    "checkpoints_activations": "automatic",
    "decide": "automatic",
    "four_bit_dtype": "automatic",
    "PreferenceConfig": "arguments",
    "duration": "checks",
    "Imported": "importing",
    "import_config": "importing",
    "RunConfig": "run",
    "find_config": "run",
    "load_config": "run",
    "schema": "run",
    "check_type": "typed",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: reading YAML need not wait for torch and transformers."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
