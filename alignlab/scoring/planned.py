"""When a flat row goes through the kernels, by counts from its lengths; its plans; and a layer's attention by them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.data import AttentionPlan, attention_plan

from .kernels import UnsupportedAttention, block_mask, capped_attention, tree_attention

logger = logging.getLogger(__name__)
Window = tuple[int | None, int | None]  # sliding window, attention chunk; both in positions
Plans = dict[int | None, AttentionPlan]  # by the positions of an attention chunk, None without chunks
Blocks = dict[Window, Any]  # of FlexAttention, for a model that caps its attention scores
# Cells of attention that kernels must save a sequence before they are faster on a CPU than one masked call a tree.
# Measured with the mean lengths of Capybara, UltraFeedback, TL;DR and HH-RLHF, which save 84, 78, 38 and 13 thousand:
# 1.5, 1.6, 1.06 and 1.05 times as fast in fp32, and 1.1, 1.2, 0.9 and 0.9 times in bfloat16.
WORTHWHILE = 1 << 15


def uses_kernels(layout: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Returns whether a flat row goes through the kernels: in half precision on a GPU; where they save enough on a CPU.

    Args:
        layout: with a key "kernels" where that is decided already.
        dtype: of the model's weights; autocast counts besides.
    """
    ids = layout["input_ids"]
    if ids.shape[0] != 1 or "plan" not in layout:
        return False
    if "kernels" in layout:
        return bool(layout["kernels"])
    device = ids.device.type
    if device != "cpu":
        return dtype.itemsize == 2 or (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))
    return saved_cells([tree[2:] for tree in layout["trees"]]) >= WORTHWHILE


def saved_cells(trees: Sequence[Sequence[int]]) -> float:
    """Returns how many cells of queries and keys fewer are computed without masks, for each plain sequence.

    Under a mask a tree of L tokens costs L^2. Without, a prompt of p and completions of c_1, c_2, ... cost
    (p + c_1)^2 / 2, and p c_i + c_i^2 / 2 for every other.
    """
    saved, sequences = 0.0, 0
    for prompt, *completions in trees:
        first, *others = completions or [0]
        needed = (prompt + first) ** 2 / 2 + sum(prompt * one + one**2 / 2 for one in others)
        saved += (prompt + sum(completions)) ** 2 - needed
        sequences += 1 + len(others)
    return saved / sequences


def tree_plans(layout: Mapping[str, Any], chunks: Iterable[int | None]) -> Plans:
    """Returns the plans of a flat row: the collator's, and those of attention chunks, made here and copied over."""
    lengths = [tree[2:] for tree in layout["trees"]]
    plans: Plans = {None: attention_plan(lengths, table=layout["plan"])}
    for chunk in chunks:
        if chunk is not None:
            plan = attention_plan(lengths, chunk)
            plans[chunk] = plan._replace(table=plan.table.to(layout["plan"].device, non_blocking=True))
    return plans


def tree_blocks(plans: Plans, windows: Iterable[Window]) -> Blocks:
    """Returns the blocks of every kind of layer, made once a forward; none on a CPU, where nothing asks for them."""
    if plans[None].table.device.type == "cpu":
        return {}
    return {(window, chunk): block_mask(plans[chunk], window) for window, chunk in windows}


def attention_caps(config: Any) -> list[str]:
    """Returns what a config calls the soft-cap of its attention scores, where it has one."""
    named = [name for name in vars(config) if ("softcap" in name or "soft_cap" in name) and "att" in name]
    return [name for name in named if getattr(config, name)]


def keep_caps(model: nn.Module) -> None:
    """Has a model that soft-caps its attention scores run eagerly in place of SDPA, which drops the cap.

    transformers 5.19 chooses SDPA for Gemma 2 and says nothing; later ones refuse it.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) == "sdpa" and attention_caps(config.get_text_config()):
        logger.warning("%s caps its attention scores, which SDPA does not: it runs eagerly", type(model).__name__)
        model.set_attn_implementation("eager")  # type: ignore[operator]


def planned_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, plans: Plans, blocks: Blocks, **options: Any
) -> Tensor:
    """Returns the attention ``[1, T, H, Dv]`` of one layer over a flat row, by the plan of its layer type.

    Args:
        query: ``[1, H, T, D]``; ``key`` and ``value``: ``[1, G, T, D or Dv]``.
        blocks: what ``tree_blocks`` made; what is missing there is made again.
        options: what the layer says besides: its scale, its soft-cap, its sinks.

    Raises:
        UnsupportedAttention: what the kernels would drop: a position bias, dropout, sinks beside a soft-cap.
    """
    cap, sinks = options.pop("softcap", None), options.get("s_aux")
    refuse(options)
    if options.get("dropout"):
        raise UnsupportedAttention("attention with dropout")
    if cap is not None and sinks is not None:
        raise UnsupportedAttention("attention with softcap and sinks")
    config: Any = module.config
    types = getattr(config, "layer_types", None)
    kind = types[module.layer_idx] if types else "sliding_attention"
    chunk = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    window = getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    seen: dict[str, Any] = {"scale": options.get("scaling"), "window": window}
    if cap is None:
        return tree_attention(q, k, v, plans[chunk], sinks=sinks, **seen)[None]
    return capped_attention(q, k, v, plans[chunk], cap=cap, blocks=blocks.get((window, chunk)), **seen)[None]


def refuse(options: Mapping[str, Any]) -> None:
    """Refuses by name what attention over trees would drop in silence."""
    for name in ("position_bias", "softcap", "cache", "indices", "block_indices"):
        if options.get(name) is not None:
            raise UnsupportedAttention(f"attention with {name}")
    if options.get("is_causal") is False:
        raise UnsupportedAttention("attention that is not causal")
