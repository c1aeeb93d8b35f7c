"""The load-balancing loss of mixture-of-experts models, the same in packed rows as in plain ones, and on all ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .values import base_of


class Router:
    """Watches the routers of a model and returns their load-balancing loss.

    ``experts * sum_e f_e P_e`` with f_e the share of tokens sent to expert e and P_e its mean probability, over all
    layers (Switch Transformer, 2101.03961, equations 4 to 6, as transformers has it). Every token is weighted by the
    number of plain sequences it stands in, so that a shared prompt counts as often as if it were repeated; both means
    are over the micro-batches of all ranks, so that the loss is that of one process.

    Args:
        model: a mixture-of-experts causal LM, also inside PEFT or an engine.
        coefficient: weight of the loss in the objective.

    Raises:
        ValueError: the model has no routers.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        base = base_of(model)
        self.trunk: nn.Module = base.base_model
        self.coefficient = coefficient
        balanced = hasattr(sys.modules[type(base).__module__], "load_balancing_loss_func")
        config = base.config.get_text_config()
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        if not balanced or experts is None:
            raise ValueError(f"router_aux_loss_coef: {type(base).__name__} has no routers with a load-balancing loss")
        self.experts, self.chosen = int(experts), int(config.num_experts_per_tok)
        self._logits: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, a forward of the model leaves its routers' logits here."""

        def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "output_router_logits": True}

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._logits = tuple(output.router_logits)

        handles = [
            self.trunk.register_forward_pre_hook(ask, with_kwargs=True),
            self.trunk.register_forward_hook(keep),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, shares: Tensor, over_ranks: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
        """Returns this rank's part of the load-balancing loss of the forward just watched; the ranks' sum is the loss.

        Args:
            shares: ``[R, S]``, weighs the tokens; 0 where they only fill.
            over_ranks: sums a tensor over ranks; every rank must call.
        """
        gates, self._logits = self._logits, None
        weights = shares.flatten().float()
        sent, probability = torch.zeros(2, self.experts, device=weights.device).unbind()
        for gate in gates:
            chance = gate.softmax(-1)
            experts = chance.topk(self.chosen, dim=-1).indices
            sent = sent.scatter_add(0, experts.flatten(), weights.repeat_interleave(self.chosen))
            probability = probability + weights @ chance.float()
        sums = over_ranks(torch.cat((sent, weights.sum()[None] * len(gates))))
        return self.experts * (sums[:-1] * probability).sum() / sums[-1] ** 2


def router_of(model: Any, coefficient: float | None) -> Router | None:
    """Returns the router whose loss joins the objective: as asked, or as the model's own config says; else None."""
    if coefficient is None:
        config = base_of(model).config.get_text_config()
        coefficient = (
            getattr(config, "router_aux_loss_coef", 0.0) if getattr(config, "output_router_logits", False) else 0.0
        )
    return Router(model, coefficient) if coefficient else None
