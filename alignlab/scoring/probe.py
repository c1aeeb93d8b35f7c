"""Decides at load, by running it, whether a model takes packed, prefix-shared rows exactly."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate import PartialState

from alignlab.data import Mode
from alignlab.runtime import evaluating, true_float32, unwrap

from .checks import Trial, difference, leak, miscalled, short_windows
from .packing import FLAT, UnsupportedModel, layer_windows
from .twin import REACH, NoTwin, build_twin, twin_config

logger = logging.getLogger(__name__)
_MODES: tuple[Mode, ...] = ("flat", "rows", "padded")
_MASKED = ("sdpa", "eager", "flex_attention", FLAT)  # attention that takes a mask of trees
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
        _say_once(logging.WARNING, f"rows are padded and prompts repeated, because {reason}")
    assert mode != "flat" or all(base_of(model).config._attn_implementation == FLAT for model in candidates)
    return mode


@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def base_of(model: Any) -> Any:
    """Returns the transformers model inside a PEFT model or an engine."""
    model = unwrap(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe(model: Any, pad_id: int = 0) -> tuple[Mode, str]:
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
    name, before = type(base).__name__, base.config._attn_implementation
    if reason := _known_to_fail(base.config.get_text_config(), before):
        return "padded", f"{name} has {reason}"
    for candidate in _candidates(before, device):
        found = _twin_fails(base, candidate, device, pad_id)
        reason = found or ""
        if found is None and sharded:
            reason = "cannot be checked: ZeRO-3 has sharded it, and no small twin of it can be built"
        if not reason and not sharded:
            reason = _fails(model, base, candidate, pad_id, alone=found is None)
        base.set_attn_implementation(candidate.attention if not reason else _stock_of(before))
        if not reason:
            return candidate.mode, ""
    return "padded", f"{name} in packed rows {reason}"


def _known_to_fail(config: Any, attention: str) -> str:
    """Returns what the checks cannot see, or must not run: flash attention given a mask of trees faults its device."""
    if attention not in _MASKED:
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


def _candidates(attention: str, device: torch.device) -> list[Candidate]:
    """Returns the layouts that a model with such attention could take, the best first."""
    if attention not in ("sdpa", FLAT):
        return [Candidate("rows", attention)]
    flat = [Candidate("flat", FLAT, counted=True)] if device.type == "cpu" else []
    return [*flat, Candidate("rows", "sdpa")]


def _twin_fails(base: Any, candidate: Candidate, device: torch.device, pad_id: int) -> str | None:
    """Returns what the first failing check found on the twin, or ""; None where there is no twin. Kept by config."""
    stock = _stock_of(base.config._attn_implementation)
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


def _stock_of(attention: str) -> str:
    """Returns the attention that runs plain rows of such a model as transformers does."""
    return "sdpa" if attention == FLAT else attention


def _twin(base: Any, candidate: Candidate, pad_id: int) -> Trial:
    """Returns a twin, as narrow as can be, that scores plain rows."""
    failures, stock = [], _stock_of(base.config._attn_implementation)
    for narrow in (True, False):
        try:
            twin = build_twin(type(base), twin_config(base.config, narrow=narrow), stock)
            trial = Trial(twin, twin, pad_id, candidate.mode, candidate.attention, stock)
            if bool(trial.scores(plain=True).isfinite().all()):
                return trial
            failures.append("its scores of plain rows are not finite")
        except Exception as error:  # a model may want of its config what a cut one does not give
            failures.append(str(error) if isinstance(error, NoTwin) else f"{type(error).__name__}: {error}")
    raise NoTwin("; ".join(dict.fromkeys(failures)))


def _fails(model: Any, base: Any, candidate: Candidate, pad_id: int, *, alone: bool) -> str:
    """Returns what the first failing check found on the model itself, or ""; ``alone``: without a twin's word."""
    trial = Trial(model, base, pad_id, candidate.mode, candidate.attention, _stock_of(base.config._attn_implementation))
    with evaluating(model):
        found = _first_found(trial, candidate, exact=False)
        if alone and not found:
            with short_windows(base.config.get_text_config(), REACH):
                found = _first_found(trial, candidate, exact=False)
    return found


def _first_found(trial: Trial, candidate: Candidate, *, exact: bool) -> str:
    try:
        found = difference(trial, exact=exact) or leak(trial)
        return miscalled(trial) if candidate.counted and not found else found
    except Exception as error:  # whatever a model raises when given packed rows is a reason not to
        return f"raises {type(error).__name__}: {error}"


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
