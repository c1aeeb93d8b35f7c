"""The mismatched completion of each labelled row: what another prompt was answered with (KTO)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .keys import KEY, content_key
from .options import DataOptions


def partners(prompts: list[bytes], keys: list[bytes]) -> np.ndarray:
    """For each row, the row whose completion it is given: the next one, in the order of content, with another prompt.

    The order is cyclic and depends on nothing but content, so that rows keep their partner when files are shuffled,
    and new rows change only those next to them. Rows of equal content share their partner.

    Args:
        prompts: one hash per row, equal where the prompts are.
        keys: content key of prompt and completion of each row.

    Returns:
        ``[rows]`` int64.

    Raises:
        ValueError: all rows have the same prompt.
    """
    if len(set(prompts)) < 2:
        raise ValueError(
            f"mismatched completions need at least two distinct prompts; the {len(prompts)} rows have "
            f"{len(set(prompts))} (KTO's KL term is estimated on them)"
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    result = np.zeros(len(keys), dtype=np.int64)
    following = order[0]
    for row in reversed(order + order):  # twice around: the first lap finds what follows the last row
        result[row] = result[following] if prompts[following] == prompts[row] else following
        following = row
    return result


def mismatched_rows(prompts: pa.ChunkedArray, others: pa.Table, options: DataOptions) -> dict[str, pa.Array]:
    """Returns the completions of ``others`` as those of rows with ``prompts``.

    ``mismatched_ids`` and ``mismatched_mask`` are cut to what ``max_length`` leaves under each prompt;
    ``mismatched_key`` is the content key of both under that prompt.
    """
    lengths = pc.list_value_length(prompts).to_numpy()
    ids, masks = (_cut(others[f"completion_{part}"], lengths, options) for part in ("ids", "mask"))
    three = [one.to_numpy(zero_copy_only=False) for one in (prompts.combine_chunks(), ids, masks)]
    keys = pa.array([content_key(*row) for row in zip(*three, strict=True)], KEY)
    return {"mismatched_ids": ids, "mismatched_mask": masks, "mismatched_key": keys}


def _cut(lists: pa.ChunkedArray, prompt_lengths: np.ndarray, options: DataOptions) -> pa.ListArray:
    array = lists.combine_chunks()
    offsets = array.offsets.to_numpy()
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    if options.max_length is not None:
        kept = np.minimum(lengths, options.max_length - prompt_lengths)
        if options.truncation_mode == "keep_end":
            starts = starts + lengths - kept
        lengths = kept
    new_offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(starts - new_offsets[:-1], lengths) + np.arange(new_offsets[-1])
    return pa.ListArray.from_arrays(pa.array(new_offsets, pa.int32()), array.values.take(pa.array(index)))
