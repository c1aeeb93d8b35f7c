"""Where a run may write: never over a model, an adapter, a tokenizer or data that it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .options import DataConfig, ModelOptions, holds_adapter

# What a run writes at the top of its folder.
_WRITTEN = re.compile(
    r"(config|metrics)\.(\d+\.)?(json|yaml)|(data|environment|trainer_state|samples|eval|generation_config)\.json"
    r"|checkpoint-\d+|merged|plots|report\.html|README\.md|trackers\.json|rejected_rows.*\.jsonl|training_args\.bin"
    r"|(adapter_)?(pytorch_)?model\b.*\.(safetensors|bin)(\.index\.json)?|adapter_config\.json|chat_template\..*"
    r"|(tokenizer|added_tokens|special_tokens_map|vocab|merges)\b.*\.(json|txt|model)|tokenizer_config\.json|.*\.spm"
)


def is_written(name: str) -> bool:
    """True for a name that a run gives to a file or a folder at the top of its own."""
    return _WRITTEN.fullmatch(name) is not None


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
    if not output.strip() or "\0" in output:
        raise ValueError(f"output_dir: expected the path of a folder, found {output!r}")
    folder = Path(output).expanduser().resolve()
    for one in (folder, *folder.parents):
        if one.exists() and not one.is_dir():
            raise ValueError(f"output_dir: {output} cannot be a folder: {one} is a file; choose another output_dir")
    for key, path in models_of(model, training):
        if found := _relation(folder, path):
            raise ValueError(
                f"output_dir: {output} {found} the folder of {key} ({path}), which the run would write over; choose "
                "another output_dir"
            )
    for key, path in () if data is None else _sources(data):
        if found := _data_relation(folder, path):
            raise ValueError(f"output_dir: {output} {found} {key} ({path}); choose another output_dir")


def models_of(model: ModelOptions, training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the key and the path, or the name on the hub, of every model, adapter and tokenizer that a run reads."""
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


def _data_relation(folder: Path, path: str) -> str | None:
    """Returns how a folder to write into stands to data that is read, where writing would harm it."""
    real = Path(path).expanduser().resolve()
    if not real.exists():
        return None
    if real.is_dir() and (folder == real or real in folder.parents):
        return "is the folder, or lies in it, that is read for"
    if folder not in real.parents:
        return None
    written = is_written(real.relative_to(folder).parts[0])
    return "holds, under a name that the run writes to," if written else None
