"""Packed, prefix-shared rows through a model: masks by layer type, attention tree by tree, or a plan for kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .kernels import UnsupportedAttention, dense_capped
from .planned import (
    Blocks,
    Plans,
    Window,
    attention_caps,
    planned_attention,
    refuse,
    tree_blocks,
    tree_plans,
    uses_kernels,
)

FLAT = "alignlab_flat"  # the attention implementation that takes flat rows, and plain ones as sdpa does
TREES = "alignlab_trees"  # the same, with kernels in the place of masks where they are faster


class UnsupportedModel(ValueError):
    """A model cannot take packed rows; the reason is in the message."""


def tree_mask(lengths: Sequence[int], window: Window = (None, None), device: Any = None) -> Tensor:
    """Returns who attends to whom in a tree of one prompt and its completions, ``[L, L]`` bool.

    A token sees the prompt and its own completion up to itself, as far back as the window or chunk reaches in
    positions: allow[q, k] = (branch[k] is the prompt or branch[q]) and pos[k] <= pos[q] and, for a window w,
    pos[k] > pos[q] - w; for chunks of c, pos[k] // c == pos[q] // c.

    Args:
        lengths: tokens of the prompt and of each completion.
    """
    prompt = lengths[0]
    starts = [0, *([prompt] * (len(lengths) - 1))]
    spans = [torch.arange(start, start + n, device=device) for start, n in zip(starts, lengths, strict=True)]
    positions = torch.cat(spans)
    # filled where it lies: numbers made on the host would be a copy for each tree
    branch = torch.cat([torch.full((n,), index, device=device) for index, n in enumerate(lengths)])
    query, key = positions[:, None], positions[None, :]
    allow = ((branch[None, :] == 0) | (branch[None, :] == branch[:, None])) & (key <= query)
    sliding, chunk = window
    if sliding is not None:
        allow &= key > query - sliding
    if chunk is not None:
        allow &= key // chunk == query // chunk
    return allow


def layer_windows(config: Any) -> dict[str, Window] | Window:
    """Returns the window of each layer type, or of all layers where the model knows no types.

    Raises:
        UnsupportedModel: a layer type other than full, sliding or chunked attention.
    """
    sliding, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    known: dict[str, Window] = {
        "full_attention": (None, None),
        "sliding_attention": (sliding, None),
        "chunked_attention": (None, chunk),
    }
    types = getattr(config, "layer_types", None)
    if not types:
        return (sliding, None)
    if unknown := set(types) - set(known):
        raise UnsupportedModel(f"layers of type {', '.join(sorted(unknown))}")
    return {name: known[name] for name in sorted(set(types))}


def model_inputs(model: Any, layout: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of a forward of ``model`` (unwrapped) on a layout, all but the cache's."""
    config = model.config.get_text_config()
    # A mixture of experts balances its load in router.py; its own way fails on a mask that is not a plain one.
    router = {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}
    if "trees" not in layout:
        return {"input_ids": layout["input_ids"], "attention_mask": layout["attention_mask"], **router}
    windows = layer_windows(config)
    inputs = {"input_ids": layout["input_ids"], "position_ids": layout["position_ids"], **router}
    if config._attn_implementation == TREES and uses_kernels(layout, model.dtype):
        # One number stands for all masks, so that a model which loses the plan on its way is found.
        one = _stand_in(layout)
        kinds = list(windows.values()) if isinstance(windows, dict) else [windows]
        plans = tree_plans(layout, {chunk for _, chunk in kinds})
        named = dict.fromkeys(windows, one) if isinstance(windows, dict) else one
        blocks = {"tree_blocks": tree_blocks(plans, kinds)} if attention_caps(config) else {}
        return {**inputs, "attention_mask": named, "tree_plans": plans, **blocks}
    if isinstance(windows, dict):
        mask: Any = {name: _mask(config, model, layout, window) for name, window in windows.items()}
    else:
        mask = _mask(config, model, layout, windows)
    return {**inputs, "attention_mask": mask}


def _mask(config: Any, model: Any, layout: Mapping[str, Any], window: Window) -> Any:
    """Returns the mask of one layer type in the form that the model's attention implementation takes."""
    implementation = config._attn_implementation
    if implementation in (FLAT, TREES) and layout["input_ids"].shape[0] == 1:
        return flat_mask(layout, window)
    if implementation == "flex_attention":
        return _block_mask(layout, window)
    allow = _dense_mask(layout, window)
    if implementation in ("sdpa", FLAT, TREES):
        return allow
    # Eager adds the mask to the scores: a boolean one would be silently wrong.
    return torch.zeros_like(allow, dtype=model.dtype).masked_fill_(~allow, torch.finfo(model.dtype).min)


def _dense_mask(layout: Mapping[str, Any], window: Window) -> Tensor:
    """Returns ``[R, 1, S, S]`` bool, block by block; padding sees itself, so that no row of scores is empty."""
    ids = layout["input_ids"]
    rows, width = ids.shape
    allow = torch.eye(width, dtype=torch.bool, device=ids.device).repeat(rows, 1, 1, 1)
    for row, start, *lengths in layout["trees"]:
        end = start + sum(lengths)
        allow[row, 0, start:end, start:end] = tree_mask(lengths, window, ids.device)
    return allow


def _block_mask(layout: Mapping[str, Any], window: Window) -> Any:
    """Returns the same for FlexAttention, which skips blocks in which nobody sees anybody."""
    from torch.nn.attention.flex_attention import create_block_mask

    allow = _dense_mask(layout, window)
    rows, _, width, _ = allow.shape

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allow[batch, 0, query, key]

    return create_block_mask(seen, rows, None, width, width, device=str(allow.device))


# ---- one flat row, attended to tree by tree ------------------------------------------------------------------------


def flat_mask(layout: Mapping[str, Any], window: Window) -> Tensor:
    """Returns a stand-in for the mask of one flat row that carries the trees' own masks.

    transformers hands a 4D mask on to the attention function untouched, through gradient checkpointing as well.
    """
    lengths = [tree[2:] for tree in layout["trees"]]
    ends = list(accumulate(map(sum, lengths)))
    mask = _stand_in(layout)
    spans = zip([0, *ends[:-1]], ends, lengths, strict=True)
    mask.trees = [(start, end, tree_mask(n, window, mask.device)[None, None]) for start, end, n in spans]  # type: ignore[attr-defined]
    return mask


def _stand_in(layout: Mapping[str, Any]) -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout["input_ids"].device)


def flat_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attends within each tree of a flat row by SDPA; a row without trees is attended to as SDPA does.

    No [S, S] mask is made and no token pays for another tree: the cost is the sum of the trees' squares.

    Raises:
        UnsupportedModel: a model that lost the trees on the way.
        UnsupportedAttention: an attention with a soft-cap or a position bias, which SDPA would drop.
    """
    trees = getattr(attention_mask, "trees", None)
    if trees is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise UnsupportedModel("the model changes the attention mask that it is given, or drops the plan beside it")
        return _plain(module, query, key, value, attention_mask, **options)
    refuse(options)
    parts = [
        _plain(module, query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], mask, **options)[0]
        for start, end, mask in trees
    ]
    return torch.cat(parts, dim=1), None


def trees_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_plans: Plans | None = None,
    tree_blocks: Blocks | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attends within each tree of a flat row by kernels that need no mask; without a plan as ``flat_attention``."""
    if tree_plans is None:
        return flat_attention(module, query, key, value, attention_mask, **options)
    return planned_attention(module, query, key, value, tree_plans, tree_blocks or {}, **options), None


def _plain(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attends as SDPA does, and with a soft-cap or sinks as it cannot.

    A sink is a key and value of zeros whose score the mask adds.
    """
    cap, sinks = options.pop("softcap", None), options.pop("s_aux", None)
    if mask is None and (cap is not None or sinks is not None):
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if cap is not None:
        assert mask is not None
        return _plain_capped(query, key, value, mask, cap, sinks=sinks, **options)
    if sinks is not None:
        assert mask is not None
        scores = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        scores = scores.masked_fill(~mask, torch.finfo(query.dtype).min)
        rows, heads, queries = query.shape[:3]
        sink = sinks.to(query.dtype)[None, :, None, None].expand(rows, heads, queries, 1)
        mask = torch.cat([scores.expand(rows, heads, queries, key.shape[2]), sink], -1)
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    return sdpa_attention_forward(module, query, key, value, mask, **options)  # type: ignore[no-any-return]


def _plain_capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, cap: float, **options: Any
) -> tuple[Tensor, None]:
    if options.get("dropout") or options.get("sinks") is not None:
        raise UnsupportedAttention("attention with softcap and dropout or sinks")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return dense_capped(query, key, value, mask, scale, cap).transpose(1, 2).contiguous(), None


AttentionInterface.register(FLAT, flat_attention)
AttentionInterface.register(TREES, trees_attention)
for _name in (FLAT, TREES):  # of plain rows: packed ones bring what they need
    AttentionMaskInterface.register(_name, sdpa_mask)
