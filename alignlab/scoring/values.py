"""A layout through a reward model: what its value head says of each completion, read at the completion's last token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from alignlab.runtime import unwrap

from .packing import model_inputs


def base_of(model: Any) -> Any:
    """Returns the transformers model inside a PEFT model or an engine."""
    model = unwrap(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def value_head(model: nn.Module) -> nn.Module | None:
    """Returns the head ``score`` of a decoder that classifies sequences, as PEFT may have wrapped it; None elsewhere.

    Such a model is what ``AutoModelForSequenceClassification`` makes of a decoder: a linear head over the hidden states
    of every token. It has no output embeddings.
    """
    base = base_of(model)
    head = getattr(base, "score", None)
    return head if isinstance(head, nn.Module) and base.get_output_embeddings() is None else None


def needed_values(model: nn.Module, layout: Mapping[str, Any]) -> Tensor:
    """Returns what the value head says at each completion's last token, ``[F * N, K]``, in the model's own dtype.

    The head runs inside the model's own forward, on the hidden states at ``layout["last"]`` alone: with the hooks that
    engines and adapters have on it, and without the pooling of its class, which knows padded rows only. The values
    leave it here; what is left to pool is zero, and of the same graph.

    Raises:
        ValueError: the model has no such head, or gives it something else than the hidden states of every token.
    """
    name, head = type(base_of(model)).__name__, value_head(model)
    if head is None:
        raise ValueError(f"{name} has no value head `score`: a reward model is a decoder that classifies sequences")
    rows, taken = layout["input_ids"].shape, list[Tensor]()

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        if hidden.shape[:-1] != rows:
            raise ValueError(f"{name} gives its head {tuple(hidden.shape)}, not a hidden state for each of {rows}")
        return (hidden.reshape(-1, hidden.shape[-1])[layout["last"]].unsqueeze(0), *args[1:])

    def take(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        taken.append(output.squeeze(0))
        return (output.sum() * 0).expand(*rows, output.shape[-1])

    handles = [head.register_forward_pre_hook(select, prepend=True), head.register_forward_hook(take)]
    try:
        model(**model_inputs(unwrap(model), layout), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(taken) != 1:
        raise ValueError(f"{name} called its value head {len(taken)} times, not once")
    return taken[0]


def values(model: nn.Module, layout: Mapping[str, Any]) -> Tensor:
    """Returns the values of every completion of a layout, ``[F, N, K]`` float32 (float64 stays).

    They are those of the model's own forward on each completion alone, unpadded or padded with the layout's ``pad_id``.
    """
    found = needed_values(model, layout)
    fields, rows, _ = layout["mask"].shape
    placed = found.reshape(fields, rows, -1)
    return placed if placed.dtype.itemsize > 4 else placed.float()
