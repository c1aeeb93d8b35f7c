"""What the probe runs: packed scores beside plain ones, gradients where none may be, calls of attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignlab.data import Layout, Mode, ScoredSequence, layout_fields

from . import forward
from .rounding import jolted, rounding_unit
from .values import needed_values, value_head, values

_ROUNDINGS = 16  # largest difference of a twin, in those that rounding makes; correct ones reach 1, wrong ones 1e4
_LARGEST = 1e-3  # nats, whatever rounding does to a twin in fp32
_MEANS = 4  # the same of the mean over tokens on a real model; correct ones reach 1
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


@dataclass(frozen=True)
class Trial:
    """A model on a layout that it may not take.

    Attributes:
        model: as it will be run. base: the transformers model inside.
        pad_id: token that pads rows. mode: the layout.
        attention: the implementation that runs it. stock: the one that runs plain rows, and whose word is taken.
        kernels: whether flat rows go through kernels; None: as their lengths and the dtype say.
    """

    model: Any
    base: Any
    pad_id: int
    mode: Mode
    attention: str
    stock: str
    kernels: bool | None = None

    def layout(self, mode: Mode) -> Layout:
        """Returns the samples, laid out, where the model is."""
        layout = layout_fields(samples(self.base.config.get_text_config()), self.pad_id, mode, row_length=26)
        moved: Layout = send_to_device(layout, next(self.base.parameters()).device)
        return moved

    def packed(self) -> Layout:
        """Returns the samples in the layout on trial; the model's attention is then the one that runs it."""
        self.base.set_attn_implementation(self.attention)
        layout = self.layout(self.mode)
        return layout if self.kernels is None else {**layout, "kernels": self.kernels}

    def scores(self, *, plain: bool = False) -> Tensor:
        """Returns the log-probabilities of the samples' tokens, ``[tokens]``, or values, one for each output."""
        layout = self.packed()
        if plain:
            self.base.set_attn_implementation(self.stock)
            layout = self.layout("padded")
        if self.of_values:
            return values(self.model, layout).flatten().double()
        return forward.score(self.model, layout)["logps"][layout["mask"]].double()

    @property
    def of_values(self) -> bool:
        """Whether the model has a value head in the place of an LM head."""
        return value_head(self.model) is not None

    def outputs(self, layout: Layout) -> Tensor:
        """Returns the logits at the positions that predict, or the values at last tokens, ``[M, V]``."""
        return needed_values(self.model, layout) if self.of_values else forward.needed_logits(self.model, layout)


def difference(trial: Trial, *, exact: bool) -> str:
    """Compares packed scores with those of plain rows, in units of what rounding does to the plain ones.

    Args:
        exact: of a model in true fp32, whose worst token counts; otherwise the mean over tokens does, since in few
            bits any one token may be sent to another expert.
    """
    packed, plain = trial.scores(), trial.scores(plain=True)
    unit, noise = rounding_unit(trial.model), []
    for draw in range(_DRAWS):
        with jolted(trial.base, draw, unit):
            noise.append((trial.scores(plain=True) - plain).abs())
    least = torch.finfo(torch.float32).eps * plain.abs().max().item()
    off, rounding = (packed - plain).abs(), torch.stack(noise)
    if exact:
        found, usual = off.max().item(), rounding.max().item()
        allowed = min(_ROUNDINGS * max(usual, least), _LARGEST)
    else:
        found, usual = off.mean().item(), rounding.mean().item()
        allowed = _MEANS * max(usual, least)
    if found <= allowed:
        return ""
    return f"scores otherwise than in plain ones by {found:.2g} nats (rounding: {usual:.2g}, allowed {allowed:.2g})"


def leak(trial: Trial) -> str:
    """Looks for what a completion must not see, from the first completion of all and from the last of its row.

    The gradient of its logits to the embeddings of all other tokens is exactly zero in any dtype where all is well.
    Where a model has no backward, other tokens are put in their place, and its logits must stay the same bits.
    """
    layout = trial.packed()
    for own, seen in _views(layout, layout["last" if trial.of_values else "predict"]):
        try:
            found = _gradient_outside(trial, layout, own, seen)
        except Exception:  # kernels for inference alone; what packed rows themselves raise is raised again below
            found = _change_outside(trial, layout, own, seen)
        if found != 0:
            return f"lets a completion see tokens of another ({found:.2g})"
    return ""


def _views(layout: Layout, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, for two completions, which of ``positions`` are its own and which it may see, ``[R * S]``."""
    width, device = layout["input_ids"].shape[1], positions.device
    first, last = layout["trees"][0], [tree for tree in layout["trees"] if tree[0] == layout["trees"][0][0]][-1]
    for (row, start, *lengths), index in ((first, 1), (last, len(last) - 3)):
        begin = row * width + start
        span = (begin + sum(lengths[:index]), begin + sum(lengths[: index + 1]))
        places = torch.arange(layout["input_ids"].numel(), device=device)
        inside = (places >= span[0]) & (places < span[1])
        yield inside[positions], inside | ((places >= begin) & (places < begin + lengths[0]))


def _gradient_outside(trial: Trial, layout: Layout, own: Tensor, seen: Tensor) -> float:
    """Returns the largest norm of the gradients of own logits to unseen embeddings."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1]

    handle = trial.base.get_input_embeddings().register_forward_hook(catch)
    with torch.enable_grad():
        try:
            logits = trial.outputs(layout)
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(logits[own].float().square().sum(), caught[0])
    return float(gradient.float().reshape(-1, gradient.shape[-1]).norm(dim=-1)[~seen].max())


def _change_outside(trial: Trial, layout: Layout, own: Tensor, seen: Tensor) -> float:
    """Returns by how much own logits change when every unseen token is another."""
    ids = layout["input_ids"]
    other = torch.where(seen.view_as(ids) | (ids == trial.pad_id), ids, torch.where(ids > 2, ids - 1, ids + 1))
    before, after = (trial.outputs({**layout, "input_ids": tokens})[own].double() for tokens in (ids, other))
    return float((after - before).abs().max())


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


def miscalled(trial: Trial) -> str:
    """Holds that a forward calls attention once for every layer: one that does not call it knows of no trees."""
    layers = int(trial.base.config.get_text_config().num_hidden_layers)
    with attention_calls(trial.attention) as calls:
        trial.scores()
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
