"""A small twin of a model: its architecture with few, narrow layers and random weights that make a wrong mask show."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch

from alignlab.runtime import unsharded

from .planned import attention_caps

REACH = 3  # positions of a twin's sliding windows and chunks
VOCABULARY = 1000  # tokens of a twin, at most
CAP = 1.0  # of a twin's attention scores, where the model caps them: small enough to bite
_LARGEST = 50_000_000  # parameters; a larger twin is not built
_GAIN = 1.5  # of every matrix: attention scores have a spread of about two
_EXPERTS = {"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8}
_EXPERTS |= {"num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 2, "topk_group": 1}
_RANKS = {"q_lora_rank": 64, "kv_lora_rank": 64}  # of latent attention


class NoTwin(Exception):
    """No small twin of a model can be built; the reason is in the message."""


def twin_config(config: Any, *, narrow: bool = True) -> Any:
    """Returns the config of a model's twin, computed in fp32.

    Kept: the types of layers, heads' width, rotary embeddings, sinks, norms, experts, tied weights. Cut: the number
    of layers to what shows every type of layer, windows and chunks to ``REACH`` positions, caps of attention scores
    to ``CAP``, the vocabulary to ``VOCABULARY``; with ``narrow`` widths, heads and experts too.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    config._name_or_path = ""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    _cut_depth(text)
    _set_smaller(text, {name: VOCABULARY for name in vars(text) if name.startswith("vocab_size")})
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # they may lie beyond the smaller vocabulary
        setattr(text, name, None)
    for name, value in list(vars(text).items()):
        if name in ("sliding_window", "attention_chunk_size") and isinstance(value, int):
            setattr(text, name, REACH)
    for name in attention_caps(text):
        setattr(text, name, CAP)
    for other in _other_parts(config, text):  # towers of other senses, which no text passes through
        _set_smaller(other, {"num_hidden_layers": 1, "depth": 1})
    if narrow:
        _narrow(text)
    return config


def build_twin(model_class: Any, config: Any, attention: str) -> Any:
    """Returns a model of ``twin_config`` in fp32 on the CPU; the same weights on every rank and at every call.

    The process's random numbers, and those of its accelerators, stay where they are.

    Raises:
        NoTwin: the class cannot be built from such a config, or would be too large.
    """
    try:
        with unsharded(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the accelerators
            with torch.device("meta"):
                size = sum(one.numel() for one in model_class._from_config(config, dtype=torch.float32).parameters())
            if size > _LARGEST:
                raise NoTwin(f"it would have {size:,} parameters (allowed {_LARGEST:,})")
            twin = model_class._from_config(config, dtype=torch.float32, attn_implementation=attention)
    except NoTwin:
        raise
    except Exception as error:  # code from a hub may want anything of its config
        raise NoTwin(f"{type(error).__name__}: {error}") from error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                spread = _GAIN * parameter.shape[-1] ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return twin.float().eval().requires_grad_(False)


def _cut_depth(text: Any) -> None:
    """Cuts the layers to the fewest, from the bottom, among which every value of each list by layer occurs."""
    depth = int(text.num_hidden_layers)
    lists = {name: list(v) for name, v in vars(text).items() if isinstance(v, (list, tuple)) and len(v) == depth > 2}
    kept = 2
    for values in lists.values():
        first = {values.index(value) for value in values}
        if len(first) <= depth // 2:  # otherwise it counts layers rather than telling them apart
            kept = max(kept, 1 + max(first))
    kept = min(depth, max(kept, 1 + int(getattr(text, "first_k_dense_replace", None) or 0)))
    for name, values in lists.items():
        setattr(text, name, values[:kept])
    text.num_hidden_layers = kept


def _narrow(text: Any) -> None:
    """Cuts widths where they can be: at most four heads of their own width, and what hangs on them."""
    heads = int(getattr(text, "num_attention_heads", None) or 0)
    if not heads:
        return
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    fewer = min(groups, 2)
    both = fewer * min(heads // groups, 2)
    if both * width >= text.hidden_size:
        return
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(text, name, None):
            setattr(text, name, fewer)
    text.num_attention_heads = both
    text.hidden_size = 256 if vars(text).get("head_dim") else both * width
    if hasattr(text, "word_embed_proj_dim"):
        text.word_embed_proj_dim = text.hidden_size
    inner = {name: 256 for name in vars(text) if re.search("intermediate_size|ffn_dim|n_inner", name)}
    _set_smaller(text, inner | _EXPERTS | _RANKS)


def _set_smaller(config: Any, values: dict[str, int]) -> None:
    for name, value in values.items():
        if isinstance(before := getattr(config, name, None), int) and before > value:
            setattr(config, name, value)


def _other_parts(config: Any, text: Any) -> Iterator[Any]:
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None and part is not text:
            yield part
