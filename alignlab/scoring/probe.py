"""Decides at load, by running it, whether a model takes packed, prefix-shared rows exactly."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from alignlab.data import Mode
from alignlab.runtime import evaluating, true_float32

from .checks import Trial, difference, leak, miscalled, short_windows
from .packing import FLAT, TREES, UnsupportedModel, layer_windows
from .planned import attention_caps, keep_caps
from .twin import REACH, VOCABULARY, NoTwin, build_twin, twin_config
from .values import base_of, value_head

logger = logging.getLogger(__name__)
_MODES: tuple[Mode, ...] = ("flat", "rows", "padded")
_MASKED = ("sdpa", "eager", "flex_attention")  # attention that takes a mask of trees
_OURS = (FLAT, TREES)
_verdicts: dict[tuple[Any, ...], str | None] = {}  # of twins: every model of a run, and every run, asks again


@dataclass(frozen=True)
class Candidate:
    """A layout to try.

    Attributes:
        mode: the layout. attention: the implementation that runs it.
        counted: whether that is a function chosen by name, to be called by every layer exactly once a forward; a
            model that calls another one would be silently wrong.
        half: whether on an accelerator it takes half precision alone; the twin is then run in bfloat16 there.
    """

    mode: Mode
    attention: str
    counted: bool = False
    half: bool = False


def choose_layout(requested: str, candidates: list[Any], pad_id: int, *, half: bool = False) -> Mode:
    """Returns how rows are laid out: the best that all models take.

    Args:
        requested: "auto", "packed" (refuse to fall back) or "padded".
        candidates: the policy, and models that score the same batches live.
        half: whether they will compute in half precision, whatever their weights are now.

    Raises:
        ValueError: "packed" was asked for and a model does not take it.
    """
    if requested == "padded":
        return "padded"
    modes, reasons = zip(*[probe(model, pad_id, half=half) for model in candidates], strict=True)
    mode: Mode = max(modes, key=_MODES.index)
    reason = "; ".join(reason for reason in reasons if reason)
    if mode == "padded":
        if requested == "packed":
            raise ValueError(f"layout: packed was asked for, but {reason}; allowed here: auto, padded")
        _say_once(logging.WARNING, f"rows are padded and prompts repeated, because {reason}")
    assert mode != "flat" or all(base_of(model).config._attn_implementation in _OURS for model in candidates)
    return mode


@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def probe(model: Any, pad_id: int = 0, *, half: bool = False) -> tuple[Mode, str]:
    """Returns the best layout that ``model`` takes, and why not a better one ("" if flat or rows).

    What the architecture decides is checked on a small twin (``twin.py``) in true fp32, where a mistake stands out by
    orders of magnitude: packed scores equal plain ones, windows, chunks and caps being small enough to bite; no
    completion's logits have any gradient to what it must not see; and attention that is chosen by name is called once
    a layer. The twin runs on the CPU first, where a mistake is an exception, then on the model's device. What weights,
    wrappers, adapters and dtype could add is checked on the model itself: the same gradients, exactly zero in any
    dtype, and differences of no more than a few times what rounding does to it. Where no twin can be built, the model
    stands in for it, with its windows cut; of a model that ZeRO-3 has sharded the twin alone is run.
    """
    base = base_of(model)
    sharded = any(hasattr(parameter, "ds_id") for parameter in base.parameters())
    device = PartialState().device if sharded else next(base.parameters()).device
    keep_caps(base)
    name, before = type(base).__name__, base.config._attn_implementation
    candidates = _candidates(base, device, half)
    if reason := _known_to_fail(base.config.get_text_config(), before if not candidates else ""):
        return "padded", f"{name} has {reason}"
    for candidate in candidates:
        found = _twin_fails(base, candidate, device, pad_id)
        reason = found or ""
        if found is None and sharded:
            reason = "cannot be checked: ZeRO-3 has sharded it, and no small twin of it can be built"
        if not reason and not sharded:
            reason = _fails(model, base, candidate, pad_id, alone=found is None)
        base.set_attn_implementation(candidate.attention if not reason else _stock_of(base, before))
        if not reason:
            return candidate.mode, ""
    return "padded", f"{name} in packed rows {reason}"


def _known_to_fail(config: Any, attention: str) -> str:
    """Returns what the checks cannot see, or must not run: flash attention given a mask of trees faults its device.

    Args:
        attention: that of the model where no layout takes it.
    """
    if attention:
        return f"attn_implementation: {attention}, which takes no mask of trees (sdpa, eager and flex_attention do)"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {str(rope.get("rope_type", rope.get("type", "")))} | {
        str(one.get("rope_type", "")) for one in rope.values() if isinstance(one, dict)
    }
    if kinds & {"longrope", "dynamic"}:
        return "rotary embeddings that depend on the longest position of the batch"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "local attention measured in indices, not in positions"
    try:
        layer_windows(config)
    except UnsupportedModel as error:
        return str(error)
    return ""


def _candidates(base: Any, device: torch.device, half: bool = False) -> list[Candidate]:
    """Returns the layouts that a model with such attention could take, the best first.

    Flash attention is never given a mask of trees, only kernels that need none. A model that is to be run eagerly
    although it offers SDPA stays so.
    """
    attention, on_cpu = base.config._attn_implementation, device.type == "cpu"
    trees = [Candidate("flat", TREES, counted=True, half=not on_cpu)] if _takes_kernels(base, device, half) else []
    if attention in _OURS or attention == "sdpa":
        flat = [Candidate("flat", FLAT, counted=True)] if on_cpu and base._supports_sdpa else []
        return [*trees, *flat, Candidate("rows", _stock_of(base, attention))]
    if attention not in _MASKED:
        return [] if on_cpu else trees
    own = attention == "eager" and not base._supports_sdpa
    return [*(trees if own else []), Candidate("rows", attention)]


def _takes_kernels(base: Any, device: torch.device, half: bool) -> bool:
    """Returns whether the kernels could run a model: in half precision on an NVIDIA GPU since Ampere, or on a CPU.

    What accelerate says of the process is not asked: it may be left from a run that is over.
    """
    if any(_dropout_of(module) for module in base.modules()):
        return False
    if device.type != "cuda":
        return device.type == "cpu"
    half = half or base.dtype.itemsize == 2 or torch.is_autocast_enabled("cuda")
    return half and torch.cuda.get_device_capability(device) >= (8, 0)


def _dropout_of(module: nn.Module) -> float:
    """Returns the dropout of attention weights, which the kernels do not have, by the names that models have for it."""
    names = ["attention_dropout", "attn_dropout"]
    if "Attention" in type(module).__name__:  # elsewhere these are dropouts of other things
        names += ["dropout", "dropout_p", "dropout_prob", "attn_drop"]
    found = (getattr(module, name, 0.0) for name in names)
    rates = [getattr(one, "p", one) for one in found]
    return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=0.0)


def _twin_fails(base: Any, candidate: Candidate, device: torch.device, pad_id: int) -> str | None:
    """Returns what the first failing check found on the twin, or ""; None where there is no twin. Kept by config."""
    stock = _stock_of(base, base.config._attn_implementation)
    key = (type(base), base.config.to_json_string(use_diff=False), stock, candidate, str(device), pad_id)
    if key not in _verdicts:
        with torch.no_grad(), _without_autocast(device), true_float32():
            try:
                trial = _twin(base, candidate, pad_id)
            except NoTwin as error:
                name = type(base).__name__
                _say_once(logging.INFO, f"the probe runs {name} itself, having no small twin of it: {error}")
                _verdicts[key] = None
                return None
            _verdicts[key] = _first_found(trial, candidate, exact=True)
            if not _verdicts[key] and device.type != "cpu":
                trial.base.to(device, torch.bfloat16 if candidate.half else None)
                _verdicts[key] = _first_found(trial, candidate, exact=not candidate.half)
    return _verdicts[key]


def _stock_of(base: Any, attention: str) -> str:
    """Returns the attention that runs plain rows of such a model as transformers does."""
    plain = "sdpa" if base._supports_sdpa and not attention_caps(base.config.get_text_config()) else "eager"
    return plain if attention in (*_OURS, "sdpa") else attention


def _twin(base: Any, candidate: Candidate, pad_id: int) -> Trial:
    """Returns a twin, as narrow as can be, that scores plain rows."""
    failures, stock = [], _stock_of(base, base.config._attn_implementation)
    pad = pad_id if pad_id < VOCABULARY else 0  # a twin has fewer tokens, and no sample holds this one
    stock = stock if stock in _MASKED else _stock_of(base, TREES)  # on the CPU there is no flash attention by name
    for narrow in (True, False):
        try:
            twin = build_twin(type(base), twin_config(base.config, narrow=narrow), stock)
            if value_head(twin) is not None:
                twin.config.get_text_config().pad_token_id = pad  # its class pools no batch without one
            trial = Trial(twin, twin, pad, candidate.mode, candidate.attention, stock)
            if bool(trial.scores(plain=True).isfinite().all()):
                return trial
            failures.append("its scores of plain rows are not finite")
        except Exception as error:  # a model may want of its config what a cut one does not give
            failures.append(str(error) if isinstance(error, NoTwin) else f"{type(error).__name__}: {error}")
    raise NoTwin("; ".join(dict.fromkeys(failures)))


def _fails(model: Any, base: Any, candidate: Candidate, pad_id: int, *, alone: bool) -> str:
    """Returns what the first failing check found on the model itself, or ""; ``alone``: without a twin's word."""
    stock = _stock_of(base, base.config._attn_implementation)
    trial = Trial(model, base, pad_id, candidate.mode, candidate.attention, stock)
    with evaluating(model):
        found = _first_found(trial, candidate, exact=False)
        if alone and not found:
            with short_windows(base.config.get_text_config(), REACH):
                found = _first_found(trial, candidate, exact=False)
    return found


def _first_found(trial: Trial, candidate: Candidate, *, exact: bool) -> str:
    """Returns what the first failing check found; on a CPU long rows go through kernels and short ones do not.

    A twin on the CPU of a capped model that is bound for a GPU goes through kernels alone, as the model will.
    """
    both = candidate.attention == TREES and next(trial.base.parameters()).device.type == "cpu"
    alone = candidate.half and attention_caps(trial.base.config.get_text_config())
    try:
        for kernels in ((True,) if alone else (True, False)) if both else (None,):
            one = replace(trial, kernels=kernels)
            found = difference(one, exact=exact) or leak(one) or (miscalled(one) if candidate.counted else "")
            if found:
                return found
        return ""
    except Exception as error:  # whatever a model raises when given packed rows is a reason not to
        return f"raises {type(error).__name__}: {error}"


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
