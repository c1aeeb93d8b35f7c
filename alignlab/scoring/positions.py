"""The model's own forward with something else in the place of its LM head: chunked scores, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.runtime import unwrap

from .chunked import chunked_scores
from .dtypes import dtypes_said
from .logits import Head
from .wanted import Wanted


@contextmanager
def _replaced_head(model: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Within it the LM head of ``model`` is ``compute``; its outputs go to the list, and the model gets no logits.

    They leave the head module as its output, so whatever hooks an engine has on that module see what they see in a
    plain run: DeepSpeed ZeRO-3 gathers the weight before it, and again before its backward; accelerate moves it where
    it was dispatched. The last hook takes them away and hands the model an empty tensor ``[1, M, 0]`` of the same
    graph, which survives scale, soft-cap and casts; so the model's other outputs (the auxiliary loss of a mixture of
    experts) come out as always, and DDP finds every parameter in its graph. The alternative, running the trunk and
    applying the head outside, misses those hooks and every wrapper's own forward.
    """
    module, taken = unwrap(model).get_output_embeddings(), []
    # accelerate's dispatch puts its own forward around the module's, and calls that by this name
    name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    before = vars(module).get(name)

    def take(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        taken.append(output)
        return output[..., :0]

    handle = module.register_forward_hook(take)  # the last: after those that gather weights for the backward
    setattr(module, name, compute)
    try:
        yield taken
    finally:
        delattr(module, name) if before is None else setattr(module, name, before)
        handle.remove()


def _at_positions(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, compute: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Any]:
    """Returns ``compute`` of the final hidden states ``[M, D]`` at positions, and the model's output."""

    def select(hidden: Tensor) -> Tensor:
        return compute(hidden.reshape(-1, hidden.shape[-1])[positions]).unsqueeze(0)

    with _replaced_head(model, select) as taken, dtypes_said(model):
        output = model(**inputs, use_cache=False)
    if len(taken) != 1:
        raise ValueError(f"{type(unwrap(model)).__name__} called its LM head {len(taken)} times, not once")
    return taken[0].squeeze(0), output


def hidden_positions(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Returns the hidden states ``[M, D]`` that the LM head would be given at positions; no logits are made."""
    return _at_positions(model, inputs, positions, lambda hidden: hidden)[0]


def score_positions(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, head: Head, wanted: Wanted
) -> tuple[dict[str, Tensor], Any]:
    """Scores positions inside the model's own forward; see ``chunked_scores`` for the values.

    Args:
        model: the model, wrapped as it is trained. inputs: what its forward is given (ids, masks, position ids).
        positions: ``[M]`` indices into the flattened hidden states.
        head: ``head_of(model)``. wanted: of these positions.

    Returns:
        name -> ``[M]``, and the model's output, whose logits are empty.
    """

    def compute(hidden: Tensor) -> Tensor:
        return torch.stack(list(chunked_scores(hidden, head, wanted).values()), -1)

    values, output = _at_positions(model, inputs, positions, compute)
    return dict(zip(wanted.names, values.unbind(-1), strict=True)), output
