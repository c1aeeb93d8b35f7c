"""How much attention computes and keeps for packed rows, counted from lengths; and steps beside masks on the CPU.

    python benchmarks/attention_counts.py           # the counts, for three profiles of lengths; no GPU is needed
    python benchmarks/attention_counts.py --steps   # whole training steps on the CPU, kernels beside masks, paired

writes docs/results/attention_counts.csv, or attention_steps.csv. Cells are pairs of a query and a key for one head.
What a kernel computes is counted in tiles of 128 x 128, as flash attention skips them; "needed" are the pairs that see
each other. Masks are those that SDPA keeps for the backward of one layer in bf16; gathered keys and values live for one
call.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROFILES = {  # mean tokens of prompt and completion, and the longest completion
    "ultrafeedback_like": (200, 300, 2048),
    "hh_like": (110, 40, 512),
    "reasoning_16k": (300, 8000, 16000),
}
PAIRS, TILE = 8, 128
HEADS_OF_KEYS, WIDTH, BYTES = 8, 128, 2  # bf16
STEPS = {"capybara": 4, "ultrafeedback": 4, "hh_like": 8}  # pairs a micro-batch, of the profiles in workloads.py


def profile_trees(profile: str) -> list[list[int]]:
    """Returns the trees of a micro-batch, of lengths that vary log-normally; every profile from the same draws."""
    random = np.random.default_rng(0)
    for name, (prompt, completion, longest) in PROFILES.items():
        trees = [
            [_draw(random, prompt), *(min(_draw(random, completion), longest) for _ in range(2))] for _ in range(PAIRS)
        ]
        if name == profile:
            return trees
    raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")


def _draw(random: np.random.Generator, mean: int, spread: float = 0.5) -> int:
    sigma = math.sqrt(math.log(1 + spread**2))
    return max(1, int(random.lognormal(math.log(mean) - sigma**2 / 2, sigma)))


def counts(trees: list[list[int]]) -> dict[str, float]:
    """Returns what attention over a micro-batch costs: through the kernels, and under masks in rows."""
    from alignlab.data import attention_plan

    tokens = sum(map(sum, trees))
    needed = sum(tree_cells(tree) for tree in trees)
    plan = attention_plan(trees)
    queries, keys, gathered = (part.tolist() for part in plan.parts()[:3])
    sequences = zip(np.diff(queries), np.diff(keys), strict=True)
    kernel = sum(tiles(int(q), int(k)) for q, k in sequences)
    rows, width = row_shape(trees)
    return {
        "tokens": tokens,
        "needed_cells": needed,
        "kernel_cells": kernel,
        "kernel_share": kernel / needed,
        "rows_cells": rows * width**2,
        "rows_share": rows * width**2 / needed,
        "kernel_mask_bytes": 0,
        "rows_mask_bytes": BYTES * rows * width**2,
        "gathered_bytes": 2 * len(gathered) * HEADS_OF_KEYS * WIDTH * BYTES,
        "plan_bytes": plan.table.nbytes,
    }


def tree_cells(tree: list[int]) -> int:
    """Returns the pairs of a query and a key that see each other in a tree."""
    prompt, *completions = tree
    return _triangle(prompt) + sum(_triangle(one) + one * prompt for one in completions)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def tiles(queries: int, keys: int) -> int:
    """Returns the cells of the tiles that a causal call touches, its ends aligned."""
    touched = 0
    for first in range(0, queries, TILE):
        seen = min(first + TILE, queries) + keys - queries
        touched += -(-seen // TILE)
    return touched * TILE**2


def row_shape(trees: list[list[int]]) -> tuple[int, int]:
    """Returns how many packed rows a micro-batch has under masks, and how long they are."""
    from alignlab.data import ScoredSequence, layout_fields

    one = [np.zeros(max(map(max, trees)), dtype=np.int64)] * 2
    fields: dict[str, list[Any]] = {
        name: [ScoredSequence(one[0][: tree[0]], one[1][: tree[at]], one[1][: tree[at]] == 0) for tree in trees]
        for at, name in ((1, "chosen"), (2, "rejected"))
    }
    rows, width = layout_fields(fields, 0, "rows")["input_ids"].shape
    return int(rows), int(width)


# ---- whole steps on the CPU ------------------------------------------------------------------------------------------


@contextmanager
def attention_by(kernels: bool | None) -> Iterator[None]:
    """Within it flat rows go through kernels, or under masks; None: as lengths decide."""
    from alignlab.scoring import packing

    decide = packing.uses_kernels
    chosen = decide if kernels is None else lambda layout, dtype: kernels and "plan" in layout
    with patch.object(packing, "uses_kernels", chosen):
        yield


def paired_steps(profile: str, repeats: int) -> dict[str, float]:
    """Returns how many times as fast steps (forward, DPO, backward, AdamW) are as under masks, in processor time."""
    import torch
    import workloads

    from alignlab.data import ScoredSequence, layout_fields
    from alignlab.scoring import TREES, score

    torch.set_num_threads(1)
    model = workloads.make_model()
    model.set_attn_implementation(TREES)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    prompt, completion = workloads.PROFILES[profile]
    random = np.random.default_rng(1)
    ratios: dict[str, list[float]] = {"kernels": [], "as_decided": []}
    for _ in range(repeats):
        fields: dict[str, list[Any]] = {"chosen": [], "rejected": []}
        for _ in range(STEPS[profile]):
            ids = random.integers(2, 8000, 2000)
            lengths = [min(_draw(random, mean, 0.66), 500) for mean in (prompt, completion, completion)]
            for name, length in zip(fields, lengths[1:], strict=True):
                fields[name].append(ScoredSequence(ids[: lengths[0]], ids[-length:], np.ones(length, dtype=bool)))
        layout = layout_fields(fields, 0, "flat")
        spent = {}
        ways = [("masks", False), ("kernels", True), ("as_decided", None)]
        for name, way in ways if ratios["kernels"] else [("warm-up", True), *ways]:
            with attention_by(way):
                began = time.process_time()
                logps = score(model, layout)["logps"].sum(-1)
                torch.nn.functional.softplus(logps[1] - logps[0]).mean().backward()
                optimiser.step()
                optimiser.zero_grad()
                spent[name] = time.process_time() - began
        for name, found in ratios.items():
            found.append(spent["masks"] / spent[name])
    return {
        f"{name}_{what}": value
        for name, found in ratios.items()
        for what, value in (("median", statistics.median(found)), ("least", min(found)), ("most", max(found)))
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows to docs/results and prints them."""
    rows = [{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    with (ROOT / "docs" / "results" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.steps:
        write("attention_steps", [{"profile": name, **paired_steps(name, options.repeats)} for name in STEPS])
    else:
        write("attention_counts", [{"profile": name, **counts(profile_trees(name))} for name in PROFILES])


if __name__ == "__main__":
    main()
