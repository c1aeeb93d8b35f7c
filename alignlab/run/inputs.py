"""What a run reads, hashed: its data, its models and its own code, so that a run is known by more than names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab.cache import default_root, file_memory
from alignlab.config import RunConfig, models_of
from alignlab.data import sources_digest

_CODE = re.compile(r"(.+\.py):\w+")  # a loss or a judge of one's own
_MODEL = ("*model*.safetensors", "*model*.bin", "config.json", "adapter_config.json", "tokenizer.json", "*.jinja")
_PLACES, _LENGTH = 64, 65_536  # stretches of a file that are looked at, and the bytes of each


def input_digests(config: RunConfig) -> dict[str, str]:
    """Returns a hash of what a run reads: of data by the name of the set, of the rest by the key of the config.

    Data and code count with every byte; a folder of a model with the names, sizes and 64 stretches of 64 KiB of its
    files, since training changes weights everywhere. What is no local file is known by its name alone.
    """
    sets = config.data.eval if isinstance(config.data.eval, Mapping) else {"": config.data.eval}
    named = {"train": config.data.train} | {f"eval_{name}".rstrip("_"): one for name, one in sets.items() if one}
    root = config.training.get("data_cache_dir") or config.training.get("score_cache_dir") or default_root()
    found = {name: sources_digest(one, file_memory(Path(root))) for name, one in named.items()}
    found |= {key: _model_digest(Path(path)) for key, path in models_of(config.model, config.training)}
    told = {"loss": config.loss, "eval_judge": config.training.get("eval_judge")}
    code = {f"the code of {key}": Path(match[1]) for key, text in _texts(told) if (match := _CODE.fullmatch(text))}
    found |= {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in code.items() if path.is_file()}
    return {name: digest for name, digest in found.items() if digest}


def other_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Says of what both have and is not the same what it is."""
    other = [name for name in now if name in before and before[name] != now[name]]
    sets = {name: f"{name} data" for name in other if re.fullmatch(r"train|eval(_.*)?", name)}
    return [name if name.startswith("the ") else f"the files of {sets.get(name, name)}" for name in other]


def refuse_other_models(config: RunConfig, before: Mapping[str, str], now: Mapping[str, str], checkpoint: Path) -> None:
    """Raises ValueError where a model that a run began with is not what lies in its folder now."""
    keys = {key for key, _ in models_of(config.model, config.training)}
    if other := other_inputs({key: digest for key, digest in before.items() if key in keys}, now):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint}: cannot go on: {', '.join(other)} are not those that the run began "
            "with; start a new run, in another output_dir"
        )


def _model_digest(folder: Path) -> str:
    """Returns nothing for what is no folder, a name on the hub say."""
    folder = folder.expanduser()
    if not folder.is_dir():
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({one for pattern in _MODEL for one in folder.glob(pattern) if one.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in sorted({max(0, size - _LENGTH) * place // (_PLACES - 1) for place in range(_PLACES)}):
                file.seek(start)
                digest.update(file.read(_LENGTH))
    return digest.hexdigest()


def _texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every text in nested values, under its dotted key."""
    if isinstance(value, str):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(one, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _texts(one, f"{prefix}.{index}")
