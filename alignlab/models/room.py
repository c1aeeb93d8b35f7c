"""The longest text that a model takes, by its positions, and texts that are longer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from alignlab.runtime import unwrap

logger = logging.getLogger(__name__)
STRETCHED = ("linear", "dynamic", "yarn")  # ways to scale rotary positions that config.json's bound leaves out
CHANGING = ("dynamic", "longrope")  # ways that scale all rows of a batch by its longest


@dataclass(frozen=True)
class Room:
    """How long a text may be.

    Attributes:
        tokens: of the longest text. fails: a longer one stops the run, for positions are looked up in a table; rotary
            ones only go where the model was never trained.
        alone: tokens up to which the scores of a text do not depend on what else is in its batch; None: always.
    """

    tokens: int
    fails: bool
    alone: int | None = None


def room_of(model: Any) -> Room | None:
    """Returns the longest text that a model takes; None where its config does not bound it, as with ALiBi."""
    found: Any = getattr(unwrap(model), "config", None)
    config: Any = found.get_text_config() if hasattr(found, "get_text_config") else found
    tokens = getattr(config, "max_position_embeddings", None)
    if tokens is None or getattr(config, "alibi", False):
        return None
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not rotary:
        return Room(int(tokens), fails=_has_table(unwrap(model)))
    kinds = [one for one in rotary.values() if isinstance(one, Mapping)] or [rotary]  # one for each kind of layer
    changing = [one for one in kinds if _kind(one) in CHANGING]
    trained = [_trained(one) or getattr(config, "original_max_position_embeddings", None) or tokens for one in changing]
    return Room(max(_stretched(int(tokens), one) for one in kinds), False, min(map(int, trained), default=None))


def _kind(rotary: Mapping[str, Any]) -> Any:
    return rotary.get("rope_type", rotary.get("type"))


def _trained(rotary: Mapping[str, Any]) -> int | None:
    return rotary.get("original_max_position_embeddings")


def _has_table(model: nn.Module) -> bool:
    """True where positions are looked up: learned ones, or sines that were written down once (GPT-J)."""
    learned = (name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    written = (name.rpartition(".")[2] for name, _ in model.named_buffers())
    return any("pos" in name or name == "wpe" for name in learned) or "embed_positions" in written


def _stretched(tokens: int, rotary: Mapping[str, Any]) -> int:
    if _kind(rotary) not in STRETCHED:
        return tokens
    return max(tokens, int((_trained(rotary) or tokens) * float(rotary.get("factor") or 1.0)))


def check_room(model: Any, longest: int, key: str, what: str) -> None:
    """Refuses texts that a model has no positions for, and says of those that it was not trained on so far out.

    Args:
        longest: tokens of the longest text. key: what bounds it. what: which text it is.

    Raises:
        ValueError: names the key, both lengths, and that the model looks positions up in a table.
    """
    room = room_of(model)
    if room is not None and room.alone is not None and longest > room.alone:
        logger.warning(
            "%s: %s %d tokens; beyond %d this model scales the positions of a whole batch by its longest row, so that "
            "scores depend on what they were batched with",
            *(key, what, longest, room.alone),
        )
    if room is None or longest <= room.tokens:
        return
    found = f"{key}: {what} {longest} tokens, and the model has positions for {room.tokens}"
    if room.fails:
        raise ValueError(f"{found}, in a table; make it shorter")
    logger.warning("%s: beyond them it was not trained", found)
