"""What the LM head of a model computes, proven by running it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.runtime import evaluating, uncompiled, unwrap

from .logits import Head

logger = logging.getLogger(__name__)

# What configs call the factor before the soft-cap, and the soft-cap. Whether a model means them is then measured.
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def head_of(model: nn.Module) -> Head | None:
    """Returns what the LM head of a causal LM computes, if it is proven to be what ``Head`` says; else None.

    Runs the model's own forward on four tokens, without gradient and in evaluation mode. Three things must agree: the
    head module's output and ``W h + b``; the model's logits and ``Head`` on the same hidden states; and the model's
    logits and ``Head`` for a made-up head output between -1000 and 1000, because a soft-cap does not show on the small
    logits of a few tokens. Tolerance: 1e-5 of the size in float32, 4 epsilon in half precision, by the dtype of the
    head's own output: the model scales and caps it in that, though accelerate hands it on in float32.

    Call it where the model can run (after DeepSpeed ZeRO-3 has wrapped it, on every rank), once: it costs a forward.
    The reason for None is logged once.
    """
    found = _prove(model)
    if isinstance(found, Head):
        return found
    _log_once(f"the LM head runs on whole logits, not in chunks: {found}")
    return None


class LazyHead:
    """The LM head of one model, proven when it is first asked for.

    Where an engine shards the weights, no earlier moment will do.
    """

    def __init__(self) -> None:
        self._head: Head | None = None
        self.known = False

    def of(self, model: nn.Module) -> Head | None:
        """Returns ``head_of(model)``, worked out at the first call and kept."""
        if not self.known:
            self.keep(head_of(model))
        return self._head

    def keep(self, head: Head | None) -> None:
        """Settles what the head is: a copy of it, or None, where chunks cannot be used."""
        self._head, self.known = head, True

    @property
    def kept(self) -> Head | None:
        """The head, if it is known and plain."""
        return self._head


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _prove(model: nn.Module) -> Head | str:
    """Returns the head, or why it cannot be run in chunks."""
    inner = unwrap(model)
    module = inner.get_output_embeddings()
    if type(module) is not nn.Linear:
        return f"it is a {type(module).__name__}, not a plain nn.Linear"
    if type(module.weight) is not nn.Parameter or not module.weight.is_floating_point():
        return f"its weight is a {type(module.weight).__name__} of {module.weight.dtype}, not a plain tensor"
    calls: list[Tensor] = []
    dtypes: list[torch.dtype] = []

    def probe(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Catches W h + b, and puts a ramp in the place of the last token's logits. Before any engine's hook."""
        hidden, changed = args[0], output.clone()
        changed[..., -1, :] = _ramp(output)
        ours = Head(module).side(hidden.reshape(-1, hidden.shape[-1])).logits(slice(None), slice(None))
        dtypes.append(output.dtype)
        if _close(ours, output.reshape(ours.shape), output.dtype):
            ours[-1] = changed.reshape(ours.shape)[-1]
            calls.append(ours)
        return changed

    handle = module.register_forward_hook(probe, prepend=True)
    try:
        logits = _logits_of_four_tokens(model)
    except Exception as error:  # an architecture with other inputs: the plain path is the one to complain
        return f"the model's forward on four tokens failed ({type(error).__name__}: {error})"
    finally:
        handle.remove()
    if len(calls) != 1 or logits.numel() != calls[0].numel():
        return "the model's forward does not call it once, on its final hidden states, as W h + b"
    tied = module.weight is getattr(inner.get_input_embeddings(), "weight", None)
    for scale, cap in _candidates(getattr(inner, "config", None)):
        head = Head(module, scale, cap, tied)
        if _close(head.post_process(calls[0].clone()), logits.reshape(calls[0].shape), dtypes[0], ramp=-1):
            return head
    return "the model's logits are not its output under a known scale and soft-cap"


def _logits_of_four_tokens(model: nn.Module) -> Tensor:
    device = unwrap(model).get_input_embeddings().weight.device
    ids = torch.arange(4, device=device)[None]
    with uncompiled(), evaluating(model):  # dropout would draw from the random numbers of the run
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits


def _ramp(output: Tensor) -> Tensor:
    """Returns ``[V]`` values of both signs, from 0.01 to 1000 in equal ratios."""
    count = output.shape[-1]
    sizes = torch.logspace(-2, 3, count, dtype=torch.float64, device=output.device)
    signs = torch.ones_like(sizes)
    signs[::2] = -1
    return (sizes * signs).to(output.dtype)


def _candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yields every scale and soft-cap that the config could mean; a factor multiplies or divides."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    factors = [float(value) for name in _FACTORS if (value := getattr(text, name, None))]
    caps = [float(value) for name in _CAPS if (value := getattr(text, name, None))]
    scales = [1.0, *factors, *(1 / factor for factor in factors)]
    yield from product(scales, [None, *caps])


def _close(ours: Tensor, theirs: Tensor, computed: torch.dtype, ramp: int | None = None) -> bool:
    """Returns whether both agree, relative to the largest value; row ``ramp`` relative to each single value.

    Args:
        computed: the dtype in which theirs was computed; it may come in another.
    """
    tolerance = max(1e-5, 4 * torch.finfo(computed).eps)
    ours, theirs = ours.double(), theirs.double()
    size = ours.abs().amax(-1, keepdim=True).expand_as(ours).clone()
    if ramp is not None:
        size[ramp] = ours[ramp].abs()
    return bool(((ours - theirs).abs() <= tolerance * size).all())
