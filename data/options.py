"""What the data room is told: the kind of rows a loss wants, and how they are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .schema import Kind

COLUMNS = ("group", "weight", "margin", "score_chosen", "score_rejected", "rewards")
"""Optional columns a loss may require; ``rewards`` stands for ``rewards_chosen`` and ``rewards_rejected`` of pairs."""

LISTS_AS = ("best_worst", "best_rest", "best_random", "all")
"""What losses of pairs may make of a list; see ``DataOptions``."""

PROMPT_CUT_SHARE = 8
"""A prompt that leaves no room is cut until a completion has at least ``max_length // 8`` tokens (or all it has)."""


@dataclass(frozen=True)
class DataOptions:
    """How rows become token ids.

    Attributes:
        kind: what the loss wants: "pairs"; "labelled" completions (pairs are then split in two); or "lists" of scored
            completions (a pair is then a list of two).
        mismatched: labelled only: add the completion of another prompt (KTO).
        gold: pairs only: every row must have a third completion, ``gold``.
        columns: columns that every row must have, out of ``COLUMNS``.
        rewards: how many explicit rewards each completion must carry; 0 when the loss reads none.
        reward_names: the order of the objectives where rows name them; empty means sorted by name.
        max_length: most tokens of prompt plus completion, or None for no limit.
        truncation_mode: "keep_start" cuts the completion's end (a prompt that leaves no room is cut at its start);
            "keep_end" cuts at the prompt's start. The completions of a row always share the same prompt tokens.
        on_bad_row: "error" stops with the first twenty bad rows and the count of all; "skip" writes them aside.
        rejected_rows: the jsonl file that "skip" writes to, or None to count them only.
        add_eos: append the tokenizer's EOS to completions of standard (not conversational) rows that lack it.
        default_label: label of labelled rows that have none; None makes such a row a bad row.
        lists_as: what losses of pairs make of rows of several answers. "best_worst": the best and the worst;
            "best_rest": the best with every worse one; "best_random": the best with a worse one, drawn by content;
            "all": every two of which one is better.
        max_completions: most answers of a row that are taken: the best, the worst, and others drawn by content. None
            takes all.
        special_tokens_in_text: control tokens that the text of a row spells: "keep" lets them be tokens, "split" reads
            them as text, "error" makes such a row a bad row; "auto" splits in messages and keeps in plain rows.
        score_empty_thoughts: whether the tokens of an empty thought (``<think></think>``) that a chat template writes
            in front of a reply count in the loss.
        chat_template_kwargs: passed to the chat template; a row's own ``chat_template_kwargs`` go over them.

    Raises:
        ValueError: an option has a value that is not allowed, or two exclude each other.
    """

    kind: Kind = "pairs"
    mismatched: bool = False
    gold: bool = False
    columns: tuple[str, ...] = ()
    rewards: int = 0
    reward_names: tuple[str, ...] = ()
    max_length: int | None = 1024
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    on_bad_row: Literal["error", "skip"] = "error"
    rejected_rows: Path | None = None
    add_eos: bool = True
    default_label: bool | None = None
    lists_as: Literal["best_worst", "best_rest", "best_random", "all"] = "best_worst"
    max_completions: int | None = None
    special_tokens_in_text: Literal["auto", "keep", "split", "error"] = "auto"
    score_empty_thoughts: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ("pairs", "labelled", "lists"))
        _one_of("truncation_mode", self.truncation_mode, ("keep_start", "keep_end"))
        _one_of("on_bad_row", self.on_bad_row, ("error", "skip"))
        _one_of("special_tokens_in_text", self.special_tokens_in_text, ("auto", "keep", "split", "error"))
        _one_of("lists_as", self.lists_as, LISTS_AS)
        for column in self.columns:
            _one_of("columns", column, COLUMNS)
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length must be at least 2 (one token of prompt, one of completion), found {self.max_length}"
            )
        if self.max_completions is not None and self.max_completions < 2:
            raise ValueError(f"max_completions must be at least 2 (best and worst), found {self.max_completions}")
        if self.mismatched and self.kind != "labelled":
            raise ValueError(f"mismatched completions exist for kind='labelled' only, found kind='{self.kind}'")
        if self.gold and self.kind != "pairs":
            raise ValueError(f"a gold completion exists for kind='pairs' only, found kind='{self.kind}'")
        if self.rewards < 0:
            raise ValueError(f"rewards must be 0 or more, found {self.rewards}")
        if self.reward_names and self.rewards and len(self.reward_names) != self.rewards:
            raise ValueError(f"reward_names names {len(self.reward_names)} objectives, but rewards={self.rewards}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
