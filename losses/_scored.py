"""Completions scored token by token, and sums over the tokens that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def where_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Returns ``values`` with exact zeros where ``mask`` is False, so that NaN and inf there change nothing.

    Half precision is upcast to float32; float64 stays float64.
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x), exact for large |x|."""
    return -F.softplus(-x)


@dataclass(eq=False)
class Scored:
    """N completions, scored token by token; position t holds the score of completion token t.

    In a batch of lists every ``[N, ...]`` here is ``[N, K, ...]``.

    Attributes:
        logps: ``[N, T]`` float, log-probabilities of the tokens under the policy, with gradient (nats); NaN, without
            gradient, for a loss whose ``needs.logps`` is False.
        mask: ``[N, T]`` bool, True where the token counts. Whatever stands under False changes nothing.
        ref_logps: ``[N, T]`` float or None, the same under the reference, without gradient.
        kl: ``[N, T]`` float or None, KL(reference || policy) over the whole vocabulary, with gradient.
        prompt_logps: ``[N, P]`` float or None, log-probabilities of the prompt's tokens, with gradient.
        prompt_mask: ``[N, P]`` bool or None.
        second_moment: ``[N, T]`` float or None, log of the sum over the vocabulary of squared policy probabilities.
        rewards: ``[N, K-1]`` float or None, explicit rewards of the other objectives, no gradient.
        values: ``[N, V]`` float or None, what the outputs of a value head say of each completion, with gradient.
        scorers: log-probabilities ``[N, T]`` under other frozen models, by name, no gradient.
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor | None = None
    kl: Tensor | None = None
    prompt_logps: Tensor | None = None
    prompt_mask: Tensor | None = None
    second_moment: Tensor | None = None
    rewards: Tensor | None = None
    values: Tensor | None = None
    scorers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"Scored.mask must be bool, found {self.mask.dtype}")
        for name in ("mask", "ref_logps", "kl", "second_moment"):
            other = getattr(self, name)
            if other is not None and other.shape != self.logps.shape:
                raise ValueError(
                    f"Scored.{name} has shape {tuple(other.shape)}, but logps has {tuple(self.logps.shape)}"
                )

    @property
    def leading(self) -> Tensor:
        """What carries the gradient, a row each: the values where there are any, else the log-probabilities."""
        return self.logps if self.values is None else self.values

    @property
    def lengths(self) -> Tensor:
        """Number of tokens that count, ``[N]``, in the dtype of the log-probabilities (n in the formulas)."""
        return self.mask.sum(-1).to(where_mask(self.logps, self.mask).dtype)

    @property
    def sum_logps(self) -> Tensor:
        """Sum of the policy's log-probabilities over the tokens that count, ``[N]`` (L in the formulas)."""
        return where_mask(self.logps, self.mask).sum(-1)

    @property
    def mean_logps(self) -> Tensor:
        """``sum_logps / lengths``, ``[N]``; 0 for a completion that has no tokens, as the holes of lists have none."""
        return self.sum_logps / self.lengths.clamp(min=1)

    @property
    def sum_ref_logps(self) -> Tensor:
        """Sum of the reference's log-probabilities, ``[N]``, detached (R in the formulas)."""
        return where_mask(self.require("ref_logps").detach(), self.mask).sum(-1)

    @property
    def log_ratios(self) -> Tensor:
        """``sum_logps - sum_ref_logps``, ``[N]`` (a for chosen, b for rejected in the formulas)."""
        return self.sum_logps - self.sum_ref_logps

    @property
    def sum_kl(self) -> Tensor:
        """Sequence KL(reference || policy), ``[N]`` (K in the formulas)."""
        return where_mask(self.require("kl"), self.mask).sum(-1)

    def require(self, name: str) -> Tensor:
        """Returns the optional tensor ``name`` or says that the loss was not given what it declared."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this loss needs Scored.{name}, and none was given: does its `needs` declare it?")
        assert isinstance(value, Tensor)
        return value
