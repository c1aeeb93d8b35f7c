"""The fingerprint of a checkpoint, read from its files without loading the model."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from .fingerprint import Entry, NamedTensor, base_tensors, combine, digests_of, settings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def fingerprint_path(
    path: Path | str,
    dtype: torch.dtype | str,
    compute_dtype: torch.dtype | str,
    extra: Mapping[str, str] | None = None,
    revision: str | None = None,
) -> str | None:
    """``fingerprint_model(AutoModelForCausalLM.from_pretrained(path, dtype=dtype), ...)``, without loading the model.

    Reads the safetensors files, casts to ``dtype`` chunk by chunk while hashing. Returns None, with the reason in the
    log, where the bytes in memory cannot be foretold from the files: then load the model and ask ``fingerprint_model``.

    Args:
        path: a folder with ``config.json`` and ``model.safetensors`` or an index of shards, or a hub id.
        dtype: the dtype given to ``from_pretrained``, ``"auto"`` included.
        compute_dtype: as for ``fingerprint_model``.
        extra: as for ``fingerprint_model``.
        revision: of a hub id, the one that would be loaded.
    """
    try:
        entries, config = _file_entries(path, dtype, revision)
    except _NotForetold as reason:
        logger.info("The fingerprint of %s cannot be read from its files (%s): the model must be loaded.", path, reason)
        return None
    settings = {"compute_dtype": str(compute_dtype), "config": settings_of(config)}
    return combine(entries, {**settings, **(extra or {})})


class _NotForetold(Exception):
    """Why the tensors in memory would not be those of the files."""


def _file_entries(
    path: Path | str, dtype: torch.dtype | str, revision: str | None
) -> tuple[list[Entry], dict[str, Any]]:
    """Digests of what ``from_pretrained`` would make of the files, and the model's config."""
    folder = _folder(path, revision)
    model = _meta_model(folder, dtype)
    wanted = {name: tensor for (name, _), tensor in base_tensors(model)}
    sources: dict[str, Tensor] = {}
    rename = _renamer(model, wanted)
    for raw, tensor in _file_tensors(folder):
        name = rename(raw)
        if name not in wanted:
            continue  # from_pretrained leaves it out, too
        if name in sources:
            raise _NotForetold(f"two tensors of the files become {name}")
        if tensor.shape != wanted[name].shape:
            raise _NotForetold(f"{raw} has shape {list(tensor.shape)}, the model has {list(wanted[name].shape)}")
        sources[name] = tensor
    entries = {entry[0]: entry for entry in digests_of(sources.items(), {n: t.dtype for n, t in wanted.items()})}
    return _tied_once(entries, wanted), model.config.to_dict()


def _tied_once(entries: Mapping[str, Entry], wanted: Mapping[str, Tensor]) -> list[Entry]:
    """One entry for names that the model ties, under the first of them, unless the files hold different values."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in wanted.items():
        groups[id(tensor)].append(name)
    kept: list[Entry] = []
    for group in groups.values():
        present = [entries[name] for name in group if name in entries]
        if not present:
            raise _NotForetold(f"{group[0]} is not in the files")
        if len({digest for *_, digest in present}) == 1:
            kept.append((group[0], *present[0][1:]))
        elif len(present) == len(group) == 2:
            kept += present  # the loader then leaves them untied
        else:
            raise _NotForetold(f"the tied tensors {', '.join(group)} differ in the files")
    return kept


def _folder(path: Path | str, revision: str | None) -> Path:
    """The folder itself, or the snapshot of a hub id in the local cache, at the commit that loading would use."""
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils import cached_file

    try:
        return Path(cached_file(str(path), "config.json", revision=revision)).parent
    except OSError as error:
        raise _NotForetold(str(error)) from error


def _meta_model(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """The module that would be loaded, without memory for its tensors: tells names, shapes, dtypes and ties."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if (folder / "adapter_config.json").exists():
        raise _NotForetold("it holds an adapter")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except (OSError, ValueError, KeyError) as error:
        raise _NotForetold(f"no known causal language model: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise _NotForetold("it is quantised")
    load_dtype = config.dtype if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if load_dtype is None:
        raise _NotForetold("its config names no dtype")
    default = torch.get_default_dtype()
    torch.set_default_dtype(load_dtype)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class(config)  # not from_config: under ZeRO-3 that would shard it
    finally:
        torch.set_default_dtype(default)
    if model._get_dtype_plan(load_dtype):
        raise _NotForetold(f"some of its modules stay in float32 when loaded as {load_dtype}")
    return model


def _file_tensors(folder: Path) -> Iterator[NamedTensor]:
    """All tensors of a safetensors checkpoint, memory-mapped."""
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not files[0].exists() and index.exists():
        files = sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
    if absent := [file.name for file in files if not file.exists()]:
        raise _NotForetold(f"{absent[0]} is not there")
    for file in files:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a mapping)
                yield name, content.get_tensor(name)


def _renamer(model: PreTrainedModel, wanted: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Gives a tensor of a file the name that transformers gives it in the model (old names, a missing prefix).

    The function raises _NotForetold if a tensor is fused with others while loading (experts of a mixture).
    """
    # Not public, hence imported here: should they move, the caller is told to load the model, and the tests fail.
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError as error:
        raise _NotForetold(f"this version of transformers does not tell how it renames weights: {error}") from error

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, names = model.base_model_prefix, dict(wanted)

    def rename(raw: str) -> str:
        name, converted = rename_source_key(raw, renamings, converters, prefix, names)
        if name not in names and raw in names:
            name, converted = rename_source_key(raw, [], [], prefix, names)
        if converted is not None:
            raise _NotForetold(f"{raw} is converted while loading")
        return str(name)

    return rename
