"""Batch to per-token log-probabilities and KL: the only room that runs a model forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packing import model_inputs

Layout = Mapping[str, Any]
Scores = dict[str, Tensor]


@contextmanager
def _only_positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within it, the LM head of ``model`` sees only these positions of the flattened hidden states.

    The model's own head runs, with its bias, scale and soft-cap, on ``[1, M, D]`` in place of ``[R, S, D]``: no
    logits are made for prompts and padding. It works through PEFT, DDP and DeepSpeed, whose wrappers call the same
    head module.
    """

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[positions].unsqueeze(0), *args[1:])

    head = unwrap(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(unwrap(model)).__name__} has no output embeddings: alignlab needs a causal LM")
    handle = head.register_forward_pre_hook(select, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def unwrap(model: nn.Module) -> Any:
    """Returns the model behind DDP, DeepSpeed or torch.compile, which all keep it as ``module`` or ``_orig_mod``."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def needed_logits(model: nn.Module, layout: Layout) -> Tensor:
    """Returns the logits ``[M, V]`` at the positions that predict a needed token, in the model's own dtype."""
    with _only_positions(model, layout["predict"]):
        output = model(**model_inputs(unwrap(model), layout), use_cache=False)
    logits: Tensor = output.logits[0]
    if logits.shape[0] != layout["predict"].shape[0]:
        raise ValueError(
            f"{type(unwrap(model)).__name__} does not feed its hidden states straight into its output embeddings "
            f"(asked for {layout['predict'].shape[0]} positions, got logits {tuple(output.logits.shape)})"
        )
    return logits


def token_logps(logits: Tensor, target: Tensor) -> Tensor:
    """Returns log softmax(logits)[target], ``[M]``, in float32 (float64 for float64 logits)."""
    return -F.cross_entropy(_full(logits), target, reduction="none")


def token_kl(ref_logits: Tensor, logits: Tensor) -> Tensor:
    """Returns KL(reference || policy) = sum_v q_v (log q_v - log p_v) at each position, ``[M]``, in float32."""
    ref = torch.log_softmax(_full(ref_logits), -1)
    policy = torch.log_softmax(_full(logits), -1)
    return F.kl_div(policy, ref, reduction="none", log_target=True).sum(-1)


def token_second_moment(logits: Tensor) -> Tensor:
    """Returns log sum_v p_v^2 at each position, ``[M]``, in float32."""
    return torch.logsumexp(2 * torch.log_softmax(_full(logits), -1), -1)


def score(model: nn.Module, layout: Layout, *, ref_logits: Tensor | None = None, second_moment: bool = False) -> Scores:
    """Scores every completion of a layout under ``model``.

    Args:
        ref_logits: ``[M, V]`` logits of the reference at the same positions (``needed_logits``); adds "kl".
        second_moment: adds "second_moment".

    Returns:
        name -> ``[F, N, T]``, zero where nothing counts: "logps", and what was asked for.
    """
    logits = needed_logits(model, layout)
    values = {"logps": token_logps(logits, layout["target"])}
    if ref_logits is not None:
        values["kl"] = token_kl(ref_logits.detach(), logits)
    if second_moment:
        values["second_moment"] = token_second_moment(logits)
    return {name: place(value, layout) for name, value in values.items()}


def place(values: Tensor, layout: Layout) -> Tensor:
    """Puts values ``[M]`` in their slots of ``[F, N, T]``; the rest is zero."""
    shape = layout["mask"].shape
    empty = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    return empty.index_put((layout["slot"],), values).reshape(shape)


def _full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
