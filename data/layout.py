"""Places prompts and completions into the rows that go through the model, and says which positions predict what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from .attention import attention_plan

PROMPT = "prompt"
Mode = Literal["padded", "rows", "flat"]
MOST_PADDING = 0.05  # share of the positions of packed rows that may be padding
Layout = dict[str, Any]
Ids = np.ndarray


@dataclass(frozen=True)
class ScoredSequence:
    """One prompt and one completion as token ids; ``mask`` says which completion tokens count."""

    prompt: Ids
    completion: Ids
    mask: Ids


@dataclass(frozen=True)
class Tree:
    """A prompt with the completions that follow it, each attending to the prompt and to itself.

    ``slots`` names for each completion where its scores belong, ``prompt_slot`` where the prompt's own do.
    """

    completions: Sequence[ScoredSequence]
    slots: Sequence[int]
    prompt_slot: int | None = None

    @property
    def prompt(self) -> Ids:
        """The shared prompt."""
        return self.completions[0].prompt

    @property
    def lengths(self) -> list[int]:
        """Tokens of the prompt and of each completion."""
        return [len(self.prompt), *(len(s.completion) for s in self.completions)]

    def __len__(self) -> int:
        return sum(self.lengths)

    def branches(self) -> list[Tree]:
        """Returns one tree a completion: what it takes without a shared prompt."""
        first = [self.prompt_slot, *[None] * (len(self.slots) - 1)]
        return [Tree([s], [i], p) for s, i, p in zip(self.completions, self.slots, first, strict=True)]


def layout_fields(
    fields: Mapping[str, Sequence[ScoredSequence | None]],
    pad_id: int,
    mode: Mode = "padded",
    *,
    score_prompt: bool = False,
    row_length: int = 512,
) -> Layout:
    """Lays out F fields ("chosen", "rejected", ...) of N completions; the n-th of each share a prompt.

    A field may have holes (None), as where lists are of unequal length: they take no token, and their mask is False.
    With ``score_prompt`` a last field "prompt" holds the prompt's own tokens (all but the first, which nothing
    predicts), scored once a row.

    Returns a dict:
        fields: names of the F fields.
        input_ids: ``[R, S]`` int64, the rows that go through the model.
        attention_mask: ``[R, S]`` int64, in padded mode only.
        position_ids: ``[R, S]`` int64, in packed modes only; they restart at the prompt's end for each completion.
        plan: of one packed row, the table of its ``AttentionPlan``, int32.
        trees: in packed modes, for each tree (row, first position, tokens of the prompt, of each completion ...).
        predict: ``[M]`` int64, indices into the flattened ``[R * S]`` positions whose output predicts a needed token.
        target: ``[M]`` int64, the token predicted there.
        slot: ``[M]`` int64, where its score belongs in the flattened ``[F, N, T]``.
        mask: ``[F, N, T]`` bool, True where a token counts.
        last: ``[F * N]`` int64, the index of each completion's last token that is not ``pad_id``, where a sequence
            classifier of transformers reads its value; of a completion without any, of its prompt's.
        shares: ``[R, S]`` float32, in how many plain sequences the token would stand; 0 for padding.
    """
    names, count = list(fields), len(next(iter(fields.values())))
    prompts = range(len(names) * count, (len(names) + 1) * count) if score_prompt else [None] * count
    trees = []
    for n in range(count):
        present = {f * count + n: s for f, name in enumerate(names) if (s := fields[name][n]) is not None}
        trees.append(Tree(list(present.values()), list(present), prompts[n]))
    if score_prompt:
        names.append(PROMPT)
    return {"fields": names, **_lay_out(trees, (len(names), count), pad_id, mode, row_length)}


def layout_sequences(
    sequences: Sequence[ScoredSequence], pad_id: int, mode: Mode = "padded", *, row_length: int = 512
) -> Layout:
    """Lays out N completions as one field "completion"; those with equal prompts share it."""
    groups: dict[bytes, list[int]] = {}
    for index, one in enumerate(sequences):
        groups.setdefault(np.asarray(one.prompt, dtype=np.int64).tobytes(), []).append(index)
    trees = [Tree([sequences[index] for index in group], group) for group in groups.values()]
    return {"fields": ["completion"], **_lay_out(trees, (1, len(sequences)), pad_id, mode, row_length)}


def _lay_out(trees: list[Tree], shape: tuple[int, int], pad_id: int, mode: Mode, row_length: int) -> Layout:
    assert all(len(tree.prompt) for tree in trees), "a prompt has at least one token"
    if mode == "padded":
        trees = [branch for tree in trees for branch in tree.branches()]
        rows = [[tree] for tree in trees]
    elif mode == "flat":
        rows = [trees]
    else:
        rows = balanced_rows(trees, row_length)
    return _Canvas(rows, shape, pad_id).layout(packed=mode != "padded")


def balanced_rows(trees: Sequence[Tree], row_length: int) -> list[list[Tree]]:
    """Puts trees into rows of about equal length: as many as hold ``row_length`` tokens each, if they pad little.

    The longest tree left goes into the emptiest row. Where more than ``MOST_PADDING`` of the positions would be
    padding, one row fewer is tried; a single row has none.
    """
    total = sum(map(len, trees))
    for count in range(-(-total // row_length), 0, -1):
        rows: list[list[Tree]] = [[] for _ in range(count)]
        lengths = [0] * count
        for tree in sorted(trees, key=len, reverse=True):
            emptiest = lengths.index(min(lengths))
            rows[emptiest].append(tree)
            lengths[emptiest] += len(tree)
        if total >= (1 - MOST_PADDING) * count * max(lengths):
            break
    return rows


def last_but(tokens: Ids, pad_id: int, otherwise: int) -> int:
    """Returns the index of the last token that is not ``pad_id``; ``otherwise`` where there is none."""
    index = len(tokens) - 1
    while index >= 0 and tokens[index] == pad_id:
        index -= 1
    return index if index >= 0 else otherwise


class _Canvas:
    """The arrays of a layout while trees are written into them."""

    def __init__(self, rows: list[list[Tree]], shape: tuple[int, int], pad_id: int) -> None:
        trees = [tree for row in rows for tree in row]
        self.width = max(sum(map(len, row)) for row in rows)
        self.depth = max(len(s.completion) for tree in trees for s in tree.completions)
        self.depth = max(self.depth, *(len(t.prompt) for t in trees if t.prompt_slot is not None), 0)
        self.input_ids = np.full((len(rows), self.width), pad_id, dtype=np.int64)
        self.position_ids = np.zeros((len(rows), self.width), dtype=np.int64)
        self.shares = np.zeros((len(rows), self.width), dtype=np.float32)
        self.mask = np.zeros((shape[0] * shape[1], self.depth), dtype=bool)
        self.last = np.zeros(shape[0] * shape[1], dtype=np.int64)
        self.pad_id = pad_id
        self.shape = (*shape, self.depth)
        self.predict: list[Ids] = []
        self.target: list[Ids] = []
        self.slot: list[Ids] = []
        self.trees: list[list[int]] = []
        for row, members in enumerate(rows):
            start = 0
            for tree in members:
                self._write(tree, row, start)
                start += len(tree)

    def _write(self, tree: Tree, row: int, start: int) -> None:
        prompt, end = tree.prompt, start + len(tree.prompt)
        self.trees.append([row, start, *tree.lengths])
        self._put(row, start, prompt, 0, len(tree.completions))
        first = row * self.width + start
        before_end = first + last_but(prompt, self.pad_id, 0)
        if tree.prompt_slot is not None:
            self.last[tree.prompt_slot] = before_end
            positions = np.arange(1, len(prompt))
            self._need(first - 1 + positions, prompt, positions, tree.prompt_slot)
        for one, slot in zip(tree.completions, tree.slots, strict=True):
            self._put(row, end, one.completion, len(prompt), 1)
            positions = np.flatnonzero(one.mask)
            before = row * self.width + end - 1 + positions
            before[positions == 0] = first + len(prompt) - 1  # the prompt's last token predicts every first one
            self._need(before, one.completion, positions, slot)
            own = last_but(one.completion, self.pad_id, -1)
            self.last[slot] = before_end if own < 0 else row * self.width + end + own
            end += len(one.completion)

    def _put(self, row: int, start: int, tokens: Ids, position: int, shares: int) -> None:
        span = slice(start, start + len(tokens))
        self.input_ids[row, span] = tokens
        self.position_ids[row, span] = np.arange(position, position + len(tokens))
        self.shares[row, span] = shares

    def _need(self, predict: Ids, tokens: Ids, positions: Ids, slot: int) -> None:
        """Asks for the scores of ``tokens[positions]``, which the flat positions ``predict`` predict."""
        self.predict.append(predict)
        self.target.append(tokens[positions])
        self.slot.append(slot * self.depth + positions)
        self.mask[slot, positions] = True

    def layout(self, *, packed: bool) -> Layout:
        """Returns the layout as tensors."""
        layout = {
            "input_ids": torch.from_numpy(self.input_ids),
            "predict": torch.from_numpy(np.concatenate(self.predict)),
            "target": torch.from_numpy(np.concatenate(self.target).astype(np.int64)),
            "slot": torch.from_numpy(np.concatenate(self.slot)),
            "mask": torch.from_numpy(self.mask.reshape(self.shape)),
            "last": torch.from_numpy(self.last),
            "shares": torch.from_numpy(self.shares),
        }
        if packed:
            layout |= {"position_ids": torch.from_numpy(self.position_ids)}
            if len(self.input_ids) == 1:
                layout["plan"] = attention_plan([tree[2:] for tree in self.trees]).table
            return {**layout, "trees": self.trees}
        return {**layout, "attention_mask": (layout["shares"] > 0).long()}
