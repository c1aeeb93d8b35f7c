"""What the probe runs: packed scores beside plain ones, gradients where none may be, calls of attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignlab.data import Layout, Mode, ScoredSequence, layout_fields

from . import forward
from .rounding import jolted, rounding_unit

_ROUNDINGS = 16  # largest difference of a twin, in those that rounding makes; correct ones reach 1, wrong ones 1e4
_LARGEST = 1e-3  # nats, whatever rounding does to a twin in fp32
_MEDIANS = 4  # the same of the median over tokens on a real model, where single tokens may be off by a changed expert
_DRAWS = 2


def samples(config: Any) -> dict[str, list[ScoredSequence]]:
    """Returns four pairs of different lengths."""
    random, vocabulary = np.random.default_rng(0), min(int(config.vocab_size), 1000)

    def draw(count: int) -> np.ndarray:
        return random.integers(2, vocabulary, count)

    fields: dict[str, list[ScoredSequence]] = {"chosen": [], "rejected": []}
    for prompt_length, lengths in ((5, (4, 3)), (3, (2, 5)), (6, (3, 3)), (4, (5, 2))):
        prompt = draw(prompt_length)
        for name, length in zip(fields, lengths, strict=True):
            fields[name].append(ScoredSequence(prompt, draw(length), np.ones(length, dtype=bool)))
    return fields


def _layout(base: Any, pad_id: int, mode: Mode) -> Layout:
    layout = layout_fields(samples(base.config.get_text_config()), pad_id, mode, row_length=26)
    moved: Layout = send_to_device(layout, next(base.parameters()).device)
    return moved


def token_scores(model: Any, base: Any, pad_id: int, mode: Mode) -> Tensor:
    """Returns the log-probabilities of the samples' tokens in a layout, ``[tokens]``."""
    layout = _layout(base, pad_id, mode)
    return forward.score(model, layout)["logps"][layout["mask"]].double()


def difference(model: Any, base: Any, pad_id: int, mode: Mode, *, exact: bool) -> str:
    """Compares packed scores with those of plain rows, in units of what rounding does to the plain ones.

    Args:
        exact: of a model in true fp32, whose worst token counts; otherwise the median over tokens does, which holds
            for any dtype and still shows a model that is wrong for most of its tokens.
    """
    packed, plain = token_scores(model, base, pad_id, mode), token_scores(model, base, pad_id, "padded")
    unit, noise = rounding_unit(model), []
    for draw in range(_DRAWS):
        with jolted(base, draw, unit):
            noise.append((token_scores(model, base, pad_id, "padded") - plain).abs())
    least = torch.finfo(torch.float32).eps * plain.abs().max().item()
    off, rounding = (packed - plain).abs(), torch.stack(noise)
    if exact:
        found, usual = off.max().item(), rounding.max().item()
        allowed = min(_ROUNDINGS * max(usual, least), _LARGEST)
    else:
        found, usual = off.median().item(), rounding.median().item()
        allowed = _MEDIANS * max(usual, least)
    if found <= allowed:
        return ""
    return f"scores otherwise than in plain ones by {found:.2g} nats (rounding: {usual:.2g}, allowed {allowed:.2g})"


def leak(model: Any, base: Any, pad_id: int, mode: Mode) -> str:
    """Looks for what a completion must not see, from the first completion of all and from the last of its row.

    The gradient of its logits to the embeddings of all other tokens is exactly zero in any dtype where all is well.
    Where a model has no backward, other tokens are put in their place, and its logits must stay the same bits.
    """
    layout = _layout(base, pad_id, mode)
    for own, seen in _views(layout):
        try:
            found = _gradient_outside(model, base, layout, own, seen)
        except Exception:  # kernels for inference alone; what packed rows themselves raise is raised again below
            found = _change_outside(model, layout, own, seen, pad_id)
        if not found == 0:
            return f"lets a completion see tokens of another ({found:.2g})"
    return ""


def _views(layout: Layout) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, for two completions, which of ``predict`` are its own and which positions it may see, ``[R * S]``."""
    width, device = layout["input_ids"].shape[1], layout["predict"].device
    first, last = layout["trees"][0], [tree for tree in layout["trees"] if tree[0] == layout["trees"][0][0]][-1]
    for (row, start, *lengths), index in ((first, 1), (last, len(last) - 3)):
        begin = row * width + start
        span = (begin + sum(lengths[:index]), begin + sum(lengths[: index + 1]))
        places = torch.arange(layout["input_ids"].numel(), device=device)
        inside = (places >= span[0]) & (places < span[1])
        yield inside[layout["predict"]], inside | ((places >= begin) & (places < begin + lengths[0]))


def _gradient_outside(model: Any, base: Any, layout: Layout, own: Tensor, seen: Tensor) -> float:
    """Returns the largest norm of the gradients of own logits to unseen embeddings."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1]

    handle = base.get_input_embeddings().register_forward_hook(catch)
    with torch.enable_grad():
        try:
            logits = forward.needed_logits(model, layout)
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(logits[own].float().square().sum(), caught[0])
    return gradient.float().reshape(-1, gradient.shape[-1]).norm(dim=-1)[~seen].max().item()


def _change_outside(model: Any, layout: Layout, own: Tensor, seen: Tensor, pad_id: int) -> float:
    """Returns by how much own logits change when every unseen token is another."""
    ids = layout["input_ids"]
    other = torch.where(seen.view_as(ids) | (ids == pad_id), ids, torch.where(ids > 2, ids - 1, ids + 1))
    before, after = (
        forward.needed_logits(model, {**layout, "input_ids": tokens})[own].double() for tokens in (ids, other)
    )
    return (after - before).abs().max().item()


@contextmanager
def attention_calls(name: str) -> Iterator[list[int]]:
    """Yields a list that grows by a layer's index whenever attention of this name is called."""
    function, calls = ALL_ATTENTION_FUNCTIONS[name], []

    def counting(module: nn.Module, *args: Any, **options: Any) -> Any:
        calls.append(int(getattr(module, "layer_idx", -1)))
        return function(module, *args, **options)

    ALL_ATTENTION_FUNCTIONS[name] = counting
    try:
        yield calls
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]


def miscalled(model: Any, base: Any, pad_id: int, mode: Mode, attention: str) -> str:
    """Holds that a forward calls this attention once for every layer: what is not called has been told nothing."""
    layers = int(base.config.get_text_config().num_hidden_layers)
    with attention_calls(attention) as calls:
        token_scores(model, base, pad_id, mode)
    if len(calls) == layers:
        return ""
    return f"calls attention {len(calls)} times in a forward, not once in each of {layers} layers"


@contextmanager
def short_windows(config: Any, reach: int) -> Iterator[None]:
    """Within it, sliding windows and chunks reach so many positions."""
    names = [
        name for name in ("sliding_window", "attention_chunk_size") if isinstance(getattr(config, name, None), int)
    ]
    before = {name: getattr(config, name) for name in names}
    try:
        for name in names:
            setattr(config, name, reach)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
