"""Decides at load, by running it, whether a model takes packed, prefix-shared rows exactly."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Tensor, nn

from alignlab.data import Layout, Mode, ScoredSequence, layout_fields
from alignlab.runtime import evaluating, unsharded, unwrap

from . import forward
from .packing import FLAT

logger = logging.getLogger(__name__)
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-5}
_HALF_TOLERANCE = 0.15  # half precision: only gross errors show; the gradient check below is exact there too
_MODES: tuple[Mode, ...] = ("flat", "rows", "padded")


def choose_layout(requested: str, candidates: list[Any], pad_id: int) -> Mode:
    """Returns how rows are laid out: the best that all models take.

    Args:
        requested: "auto", "packed" (refuse to fall back) or "padded".
        candidates: the policy, and models that score the same batches live.

    Raises:
        ValueError: "packed" was asked for and a model does not take it.
    """
    if requested == "padded":
        return "padded"
    modes, reasons = zip(*[probe(model, pad_id) for model in candidates], strict=True)
    mode: Mode = max(modes, key=_MODES.index)
    reason = "; ".join(reason for reason in reasons if reason)
    if mode == "padded":
        if requested == "packed":
            raise ValueError(f"layout: packed was asked for, but {reason}; allowed here: auto, padded")
        _warn_once(f"rows are padded and prompts repeated, because {reason}")
    assert mode != "flat" or all(base_of(model).config._attn_implementation == FLAT for model in candidates)
    return mode


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def base_of(model: Any) -> Any:
    """Returns the transformers model inside a PEFT model or an engine."""
    model = unwrap(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe(model: Any, pad_id: int = 0) -> tuple[Mode, str]:
    """Returns the best layout that ``model`` takes, and why not a better one ("" if flat or rows).

    Three checks on two rows of two pairs: packed scores equal those of plain rows; the same with windows and chunks
    cut to three positions; and no completion's logits have any gradient to tokens of another tree or completion.
    On a model with SDPA attention flat rows are tried first, on the CPU; then packed rows. Of a model that ZeRO-3
    has sharded a small whole twin is run in its place: what is checked depends on the architecture, not on weights.
    """
    base = base_of(model)
    if any(hasattr(parameter, "ds_id") for parameter in base.parameters()):
        twin = _twin(base)
        found = probe(twin, pad_id)
        base.set_attn_implementation(twin.config._attn_implementation)
        return found
    config = base.config.get_text_config()
    if reason := _known_to_fail(config):
        return "padded", f"{type(base).__name__} has {reason}"
    modes: list[Mode] = ["rows"]
    before = base.config._attn_implementation
    if before in ("sdpa", FLAT) and next(base.parameters()).device.type == "cpu":
        modes = ["flat", "rows"]
    reason = ""
    for mode in modes:
        if mode == "flat":
            base.set_attn_implementation(FLAT)
        elif base.config._attn_implementation == FLAT:
            base.set_attn_implementation("sdpa")
        reason = _first_failure(model, base, config, pad_id, mode)
        if not reason:
            return mode, ""
    return "padded", f"{type(base).__name__} in packed rows {reason}"


def _twin(base: Any) -> Any:
    """Returns a whole model of the same architecture and widths, with random weights, few layers and few tokens.

    It has as many layers as show every type of layer, and the same weights on every rank.
    """
    config = copy.deepcopy(base.config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    depth = 1 + max(kinds.index(kind) for kind in set(kinds)) if kinds else min(2, text.num_hidden_layers)
    if kinds:
        text.layer_types = list(kinds[:depth])
    text.num_hidden_layers, text.vocab_size = depth, min(int(text.vocab_size), 1000)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # they may lie beyond the smaller vocabulary
        setattr(text, name, None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with unsharded(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = type(base)._from_config(config, dtype=base.dtype, attn_implementation=base.config._attn_implementation)
    return twin.to(PartialState().device).requires_grad_(False)


def _known_to_fail(config: Any) -> str:
    """Returns what the checks cannot see: positions that depend on the batch, windows measured in indices."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {str(rope.get("rope_type", rope.get("type", "")))} | {
        str(one.get("rope_type", "")) for one in rope.values() if isinstance(one, dict)
    }
    if kinds & {"longrope", "dynamic"}:
        return "rotary embeddings that depend on the longest position of the batch"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "local attention measured in indices, not in positions"
    return ""


def _first_failure(model: Any, base: Any, config: Any, pad_id: int, mode: Mode) -> str:
    """Returns what the first failing check found, or ""."""
    try:
        with evaluating(model):
            found = _difference(model, base, pad_id, mode) or _leak(model, base, pad_id, mode)
            if not found:
                with _short_windows(config) as any_window:
                    found = _difference(model, base, pad_id, mode) if any_window else ""
            return found
    except Exception as error:  # whatever a model raises when given packed rows is a reason not to
        return f"raises {type(error).__name__}: {error}"


def _samples(config: Any) -> dict[str, list[ScoredSequence]]:
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
    layout = layout_fields(_samples(base.config.get_text_config()), pad_id, mode, row_length=26)
    moved: Layout = send_to_device(layout, next(base.parameters()).device)
    return moved


def _difference(model: Any, base: Any, pad_id: int, mode: Mode) -> str:
    """Compares packed scores with those of plain rows."""
    packed = forward.score(model, _layout(base, pad_id, mode))["logps"]
    plain = forward.score(model, _layout(base, pad_id, "padded"))["logps"]
    found = (packed - plain).abs().max().item()
    allowed = _TOLERANCE.get(next(base.parameters()).dtype, _HALF_TOLERANCE)
    if allowed < _HALF_TOLERANCE and _computes_in_half(base):
        allowed = _HALF_TOLERANCE
    return "" if found <= allowed else f"scores otherwise than in plain ones by {found:.2g} nats (allowed {allowed:g})"


def _computes_in_half(base: Any) -> bool:
    quantisation = getattr(base.config, "quantization_config", None)
    return quantisation is not None or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _leak(model: Any, base: Any, pad_id: int, mode: Mode) -> str:
    """Looks for gradients of one completion's logits to tokens that it must not see: exactly zero where all is well."""
    layout = _layout(base, pad_id, mode)
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1]

    handle = base.get_input_embeddings().register_forward_hook(catch)
    row, start, prompt, first, *_ = layout["trees"][0]
    width = layout["input_ids"].shape[1]
    own = range(row * width + start + prompt, row * width + start + prompt + first)
    inside = torch.tensor([position in own for position in layout["predict"].tolist()], device=layout["predict"].device)
    with torch.enable_grad():
        try:
            logits = forward.needed_logits(model, layout)
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(logits[inside].float().square().sum(), caught[0])
    norms = gradient.float().reshape(-1, gradient.shape[-1]).norm(dim=-1)
    seen = torch.zeros_like(norms, dtype=torch.bool)
    seen[row * width + start : own.stop] = True
    leaked = norms[~seen].max().item()
    return "" if leaked == 0 else f"lets a completion see tokens of another (gradient {leaked:.2g})"


@contextmanager
def _short_windows(config: Any) -> Iterator[bool]:
    """Within it, sliding windows and chunks reach three positions; yields whether there are any."""
    names = [
        name for name in ("sliding_window", "attention_chunk_size") if isinstance(getattr(config, name, None), int)
    ]
    before = {name: getattr(config, name) for name in names}
    try:
        for name in names:
            setattr(config, name, 3)
        yield bool(names)
    finally:
        for name, value in before.items():
            setattr(config, name, value)
