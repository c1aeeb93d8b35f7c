"""Rows held out of training by their content."""

from __future__ import annotations

from typing import Any

import numpy as np

from .keys import keys_of


def hold_out(dataset: Any, rows: int) -> tuple[Any, Any]:
    """Splits a tokenised dataset into (training, held out), the latter of at least ``rows`` rows.

    Rows are chosen by the hash of their prompt, so that the same rows are held out whatever the order of the file,
    and all rows of one prompt stay on one side.

    Raises:
        ValueError: if nothing would be left to train on.
    """
    if rows < 1:
        raise ValueError(f"eval_rows must be at least 1, found {rows}")
    hashes = keys_of(dataset, "prompt")
    if rows >= len(hashes):
        raise ValueError(f"eval_rows: {rows} of {len(hashes)} rows cannot be held out; nothing would be trained on")
    held = hashes <= np.sort(hashes)[rows - 1]
    if held.all():
        raise ValueError(f"eval_rows: holding out {rows} rows takes every prompt; nothing would be trained on")
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))
