"""The identity of a scorer: a hash over every byte and setting that its scores depend on, and over nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

logger = logging.getLogger(__name__)

FORMAT = "alignlab-fingerprint-1"
CHUNK = 1 << 24  # elements hashed at a time: casting and copying from a GPU need no more memory than this
NamedTensor = tuple[str, Tensor]
Entry = tuple[str, str, list[int], str]  # name, dtype, shape, digest

# Settings that change no score of a model in evaluation mode: where it came from, which library wrote it, what else it
# returns, how it was initialised, how it is trained. Everything else counts, unknown fields too: a needless miss costs
# time, a wrong hit costs the experiment. Fields with a leading underscore (paths, attention kernel) and those with
# "dropout" in their names never count. From "auto_mapping" on they are of adapters; tensor names tell their targets.
# fmt: off
NEUTRAL = frozenset({
    "architectures", "auto_map", "bos_token_id", "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task",
    "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range", "label2id", "num_labels",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "problem_type", "return_dict",
    "router_aux_loss_coef", "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype",
    "transformers_version", "use_cache",
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "modules_to_save", "peft_version", "revision", "target_modules",
    "task_type",
})
# fmt: on


def fingerprint_tensors(tensors: Mapping[str, Tensor] | Iterable[NamedTensor], extra: Mapping[str, str]) -> str:
    """Hash over (name, dtype, shape, bytes) of every tensor and over ``extra``, in any order: 32 hexadecimal digits.

    ``sha256(sorted([name, dtype, shape, sha256(bytes)]), sorted(extra))``. Tensors are read in chunks and threads,
    never copied whole; a tensor given under two names counts under both.

    Raises:
        ValueError: a name twice, or a tensor that is not whole on this process (meta, ZeRO-3, DTensor).
    """
    return combine(digests_of(tensors.items() if isinstance(tensors, Mapping) else tensors), extra)


def fingerprint_model(
    model: nn.Module,
    *,
    adapter: str | None = None,
    compute_dtype: torch.dtype | str,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Fingerprint of a model in memory; equal to that of a bare base model when a PEFT model's ``adapter`` is None.

    Counted: every parameter and persistent buffer of the base under its own name (tied ones once), the packed weights
    and quantisation state of bitsandbytes layers, the config less ``NEUTRAL``; with ``adapter`` also that adapter's
    tensors and config. Take it right after loading: a forward pass of a 4-bit model may cast its biases in place.

    Args:
        model: a transformers model or a PEFT model around one, not wrapped by DDP, FSDP or DeepSpeed.
        adapter: the adapter that is switched on while scoring; None scores with adapters off.
        compute_dtype: what the forward computes in, where it differs from the weights (autocast).
        extra: anything else that the scores depend on.

    Raises:
        ValueError: sharded or meta tensors; an adapter merged into the base; repacked 4-bit weights; no such adapter.
    """
    from peft import PeftModel

    model = getattr(model, "_orig_mod", model)  # torch.compile
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    tensors = _untied(base_tensors(base))
    settings = {"compute_dtype": str(compute_dtype), "config": settings_of(base.config.to_dict())}
    if adapter is not None:
        adapters = getattr(model, "peft_config", {})
        if adapter not in adapters:
            raise ValueError(f"the model has no adapter {adapter!r}; it has: {', '.join(adapters) or 'none'}")
        tensors += _adapter_tensors(model, base, adapter)
        settings["adapter"] = settings_of(adapters[adapter].to_dict())
    return fingerprint_tensors(tensors, {**settings, **(extra or {})})


def base_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[NamedTensor, Tensor]]:
    """Parameters and persistent buffers of the base model, each with the tensor whose storage tells ties.

    Layers that PEFT has wrapped are passed through to what they wrap, so that names are those of the bare model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        if getattr(module, "merged_adapters", None):
            raise ValueError(
                f"adapter {', '.join(module.merged_adapters)!r} is merged into {prefix.rstrip('.')}: unmerge it first"
            )
        for wrapped in ("base_layer", "original_module"):
            if hasattr(module, wrapped):
                yield from base_tensors(getattr(module, wrapped), prefix)
                return
    own = {**module._parameters, **module._buffers}
    for name, tensor in own.items():
        if tensor is not None and name not in module._non_persistent_buffers_set:
            for suffix, part in _parts(prefix + name, module, tensor):
                yield (prefix + name + suffix, part), tensor
    for name, child in module.named_children():
        yield from base_tensors(child, f"{prefix}{name}.")


def _parts(name: str, module: nn.Module, tensor: Tensor) -> Iterator[NamedTensor]:
    """A tensor, and beside quantised weights the state without which their bytes mean nothing; (suffix, tensor)."""
    state = getattr(tensor, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            f"{name} was repacked by an eval-mode forward of bitsandbytes on the CPU: take the fingerprint before it"
        )
    yield "", tensor.data
    if state is not None:
        for suffix, part in state.as_dict(packed=True).items():
            yield f".{suffix}", part
    scale = getattr(tensor, "SCB", None)  # LLM.int8: moved from the parameter to the module by the first forward
    if scale is None and hasattr(tensor, "SCB"):
        scale = getattr(getattr(module, "state", None), "SCB", None)
    if scale is not None:
        yield ".SCB", scale


def _untied(tensors: Iterable[tuple[NamedTensor, Tensor]]) -> list[NamedTensor]:
    """Keeps the first name of tensors that share one storage: the input embedding rather than the head tied to it."""
    kept: list[NamedTensor] = []
    seen: set[tuple[int, ...]] = set()
    for (name, part), tensor in tensors:
        _check_whole(name, tensor)
        place = (part.data_ptr(), *part.shape, *part.stride())
        if part.numel() == 0 or place not in seen:
            kept.append((name, part))
        seen.add(place)
    return kept


def _adapter_tensors(model: nn.Module, base: nn.Module, adapter: str) -> list[NamedTensor]:
    """Tensors of one adapter under the names of its safetensors file, which leave out the adapter's own name."""
    of_base = {id(tensor) for _, tensor in base_tensors(base)}
    found = [
        (".".join(part for part in name.split(".") if part != adapter), tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if id(tensor) not in of_base and adapter in name.split(".")
    ]
    if not found:
        raise ValueError(f"no tensor of adapter {adapter!r} was found: adapters of this kind are not supported")
    return [(f"adapter.{name}", tensor) for name, tensor in found]


def settings_of(config: Mapping[str, Any]) -> str:
    """The part of a config that scores depend on, as canonical JSON: sorted, and 1.0 written as 1."""
    return json.dumps(_clean(config), sort_keys=True, default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        cleaned = {str(name): _clean(part) for name, part in value.items() if not _neutral(str(name))}
        # Absent, None, False and empty say the same, so a newer library's new option, switched off, changes nothing.
        return {name: part for name, part in cleaned.items() if part or (part == 0 and part is not False)}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _neutral(name: str) -> bool:
    return name in NEUTRAL or name.startswith("_") or "dropout" in name or name.endswith(("pdrop", "layerdrop"))


def digests_of(tensors: Iterable[NamedTensor], dtypes: Mapping[str, torch.dtype] | None = None) -> list[Entry]:
    """(name, dtype, shape, sha256 of the bytes) of each tensor, after a cast where ``dtypes`` names another dtype."""
    named = [(name, tensor, (dtypes or {}).get(name, tensor.dtype)) for name, tensor in tensors]
    if len({name for name, *_ in named}) < len(named):
        raise ValueError("a tensor name appears twice")
    for name, tensor, _ in named:
        _check_whole(name, tensor)
    size = sum(tensor.nbytes for _, tensor, _ in named)
    # disable=None: shown on a terminal alone
    bar = tqdm(total=size, desc="Fingerprint", unit="B", unit_scale=True, delay=3, leave=False, disable=None)
    with bar, ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = []
        for (_, tensor, _), digest in zip(named, pool.map(lambda item: _digest(item[1], item[2]), named), strict=True):
            digests.append(digest)
            bar.update(tensor.nbytes)
    return [
        (name, str(dtype).removeprefix("torch."), list(tensor.shape), digest)
        for (name, tensor, dtype), digest in zip(named, digests, strict=True)
    ]


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    """sha256 of a tensor's values in row-major order, cast to ``dtype``; hashing runs without the interpreter lock."""
    digest = hashlib.sha256()
    for chunk in torch.split(tensor.detach().reshape(-1), CHUNK):
        digest.update(chunk.to(dtype).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_whole(name: str, tensor: Tensor) -> None:
    """Refuses tensors whose bytes are elsewhere: hashing the empty rest would make all models alike."""
    if hasattr(tensor, "ds_id") or isinstance(tensor, DTensor) or tensor.device.type == "meta":
        kind = (
            "sharded by ZeRO-3" if hasattr(tensor, "ds_id") else "sharded" if isinstance(tensor, DTensor) else "on meta"
        )
        raise ValueError(f"{name} is {kind}: take the fingerprint from the files, or before the model is sharded")


def combine(entries: Iterable[Entry], extra: Mapping[str, str]) -> str:
    content = json.dumps([FORMAT, sorted(entries), sorted(extra.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
