"""A layout through a model: log-probabilities, KL and second moments, from whole logits or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.runtime import unwrap

from .chunked import chunked_scores, worthwhile
from .dtypes import dtypes_said
from .logits import Head, States
from .packing import model_inputs
from .positions import hidden_positions, score_positions
from .wanted import Wanted

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


def needed_logits(model: nn.Module, layout: Layout) -> Tensor:
    """Returns the logits ``[M, V]`` at the positions that predict a needed token, in the model's own dtype."""
    with _only_positions(model, layout["predict"]), dtypes_said(model):
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


@dataclass(frozen=True)
class Distributions:
    """The whole distributions of a frozen model at the needed positions, as logits or as what makes them.

    Attributes:
        logits: ``[M, V]``, or None where they are kept as final hidden states ``[M, D]`` and their head.
    """

    logits: Tensor | None = None
    hidden: Tensor | None = None
    head: Head | None = None

    @property
    def states(self) -> States:
        """What makes the logits, where they are not kept."""
        assert self.hidden is not None
        assert self.head is not None
        return States(self.hidden, self.head)

    def logps(self, target: Tensor) -> Tensor:
        """Returns the log-probabilities of the tokens ``[M]``, without gradient."""
        with torch.no_grad():
            if self.logits is not None:
                return token_logps(self.logits, target)
            return chunked_scores(*self.states, Wanted(target))["logps"]


def distributions(model: nn.Module, layout: Layout, head: Head | None = None) -> Distributions:
    """Returns a frozen model's distributions at the needed positions; with a proven head, and many, no logits."""
    with torch.no_grad():
        if head is not None and worthwhile(len(layout["predict"]), head.vocabulary, kl=True):
            inputs = model_inputs(unwrap(model), layout)
            return Distributions(hidden=hidden_positions(model, inputs, layout["predict"]), head=head)
        return Distributions(needed_logits(model, layout))


def score(
    model: nn.Module,
    layout: Layout,
    *,
    head: Head | None = None,
    reference: Distributions | None = None,
    second_moment: bool = False,
) -> Scores:
    """Scores every completion of a layout under ``model``.

    Args:
        head: ``head_of(model)``: with it, and where it pays, no logits ``[M, V]`` are held.
        reference: the reference's distributions at the same positions; adds "kl".
        second_moment: adds "second_moment".

    Returns:
        name -> ``[F, N, T]``, zero where nothing counts: "logps", and what was asked for.
    """
    pays = reference.logits is None if reference else worthwhile(len(layout["predict"]), head.vocabulary if head else 0)
    if head is not None and pays:
        wanted = Wanted(layout["target"], reference.states if reference else None, second_moment)
        values, _ = score_positions(model, model_inputs(unwrap(model), layout), layout["predict"], head, wanted)
    else:
        logits = needed_logits(model, layout)
        values = {"logps": token_logps(logits, layout["target"])}
        if reference is not None:
            values["kl"] = token_kl(_logits_of(reference), logits)
        if second_moment:
            values["second_moment"] = token_second_moment(logits)
    return {name: place(value, layout) for name, value in values.items()}


def _logits_of(reference: Distributions) -> Tensor:
    """Returns the reference's logits, made whole where the policy's head could not be proven."""
    if reference.logits is not None:
        return reference.logits.detach()
    hidden, head = reference.states
    with torch.no_grad():
        return head.side(hidden).logits(slice(None), slice(None))


def place(values: Tensor, layout: Layout) -> Tensor:
    """Puts values ``[M, ...]`` in their slots of ``[F, N, T, ...]``; the rest is zero."""
    shape, rest = layout["mask"].shape, values.shape[1:]
    empty = torch.zeros(shape.numel(), *rest, dtype=values.dtype, device=values.device)
    return empty.index_put((layout["slot"],), values).reshape(*shape, *rest)


def _full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
