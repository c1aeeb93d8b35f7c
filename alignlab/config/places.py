"""Where a run may write: never over a model, an adapter, a tokenizer or data that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .options import DataConfig, ModelOptions, holds_adapter

# What a run writes at the top of its folder, but for its model; a data file of such a name would be overwritten.
_WRITTEN = (
    *("config.yaml", "data.json", "environment.json", "metrics.json", "trainer_state.json", "samples.json"),
    *("eval.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "plots"),
)
_WRITTEN_PREFIXES = ("rejected_rows", "checkpoint-", "merged")


def check_places(model: ModelOptions, training: Mapping[str, Any], data: DataConfig | None = None) -> None:
    """Refuses an ``output_dir`` in which the run would overwrite what it reads.

    That of a model, its base, an adapter, a tokenizer or a reference may not be the folder, nor hold it, nor lie in it,
    links resolved; data may lie in it where no file of the run has its name.

    Args:
        training: the flat keys of a config.

    Raises:
        ValueError: names ``output_dir`` and the other key.
    """
    output = str(training["output_dir"])
    folder = Path(output).expanduser().resolve()
    for one in (folder, *folder.parents):
        if one.exists() and not one.is_dir():
            raise ValueError(f"output_dir: {output} cannot be a folder: {one} is a file; choose another output_dir")
    for key, path in _models(model, training):
        if found := _relation(folder, path):
            raise ValueError(
                f"output_dir: {output} {found} the folder of {key} ({path}), which the run would write over; choose "
                "another output_dir"
            )
    for key, path in () if data is None else _sources(data):
        if found := _data_relation(folder, path, moves=bool(training.get("overwrite_output_dir"))):
            raise ValueError(f"output_dir: {output} {found} {key} ({path}); choose another output_dir")


def _models(model: ModelOptions, training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    named = {f"model.{name}": getattr(model, name) for name in ("name_or_path", "tokenizer", "adapter")}
    named |= {name: training.get(name) for name in ("ref_model_name_or_path", "ref_adapter")}
    named |= {f"scorers.{name}": path for name, path in (training.get("scorers") or {}).items()}
    for key, path in named.items():
        if isinstance(path, str) and path:
            yield key, path
            if holds_adapter(path) and (base := _base(Path(path))):
                yield f"{key}'s base model", base


def _base(adapter: Path) -> str | None:
    with suppress(OSError, ValueError):
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return str(found["base_model_name_or_path"]) if found.get("base_model_name_or_path") else None
    return None


def _relation(folder: Path, path: str) -> str | None:
    """Returns how a folder to write into stands to one that is read: "is", "holds", "lies in", or None."""
    real = Path(path).expanduser().resolve()
    if folder == real:
        return "is"
    if not real.exists():  # a name on the hub
        return None
    if folder in real.parents:
        return "holds"
    return "lies in" if real in folder.parents else None


def _sources(data: DataConfig) -> Iterator[tuple[str, str]]:
    sets = data.eval if isinstance(data.eval, Mapping) else {"": data.eval}
    for key, source in {
        "data.train": data.train,
        **{f"data.eval.{name}".rstrip("."): s for name, s in sets.items()},
    }.items():
        for part in source if isinstance(source, list) else [source]:
            path = part.get("path") if isinstance(part, Mapping) else part
            if isinstance(path, str):
                yield key, path


def _data_relation(folder: Path, path: str, *, moves: bool) -> str | None:
    """Returns how a folder to write into stands to data that is read, where writing would harm it."""
    real = Path(path).expanduser().resolve()
    if not real.exists():
        return None
    if real.is_dir() and (folder == real or real in folder.parents):
        return "is the folder, or lies in it, that is read for"
    if folder not in real.parents:
        return None
    first = real.relative_to(folder).parts[0]
    if moves:
        return "would be put aside (overwrite_output_dir), and with it"
    return (
        "holds, under a name that the run writes to,"
        if first in _WRITTEN or first.startswith(_WRITTEN_PREFIXES)
        else None
    )
