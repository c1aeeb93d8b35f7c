"""What attention over trees computes, by the benchmark's counts, and the shapes of the branch for GPUs."""

from __future__ import annotations

import csv
from pathlib import Path

import attention_counts
import pytest
import torch

from alignlab.data import attention_plan
from alignlab.scoring.kernels import UnsupportedAttention, cuda, tree_attention

RESULTS = Path(__file__).resolve().parents[4] / "docs" / "results" / "attention_counts.csv"


@pytest.mark.parametrize(
    ("profile", "most", "today"),
    [("ultrafeedback_like", 1.7, 5.5), ("hh_like", 3.2, 4.2), ("reasoning_16k", 1.05, 7.5)],
)
def test_cells_computed_for_each_that_is_needed(profile: str, most: float, today: float) -> None:
    """In tiles of 128 x 128; masks in rows computed as many times as ``today`` says. The committed table has both."""
    found = attention_counts.counts(attention_counts.profile_trees(profile))
    assert found["kernel_share"] <= most
    assert round(found["rows_share"], 1) == today
    assert found["kernel_mask_bytes"] == 0
    rows = {row["profile"]: row for row in csv.DictReader(RESULTS.read_text(encoding="utf-8").splitlines())}
    assert {name: float(value) for name, value in rows[profile].items() if name != "profile"} == {
        name: round(value, 3) for name, value in found.items()
    }


def test_tiles_by_hand() -> None:
    """130 queries over 200 keys: the first 128 see up to key 198, two tiles; the other 2 see all 200, two tiles."""
    assert attention_counts.tiles(130, 200) == 4 * 128 * 128
    assert attention_counts.tiles(128, 128) == 128 * 128
    assert attention_counts.tree_cells([2, 2, 1]) == 3 + (3 + 4) + (1 + 2)


@pytest.mark.parametrize("window", [-1, 7])
def test_the_branch_for_gpus_takes_and_gives_the_right_shapes(window: int) -> None:
    """On tensors without storage: torch's own rules for its flash attention say what it would give."""
    plan = attention_plan([[5, 4, 3], [2, 6, 1]])
    parts = [part.to("meta") for part in plan.parts()]
    q, k, v = (torch.empty(21, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (8, 2, 2))
    longest = (plan.longest_query, plan.longest_key)
    out, lse = cuda.forward(q, k, v, parts, longest, 0.125, window)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, (8, 21), torch.float32)
    gradients = cuda.backward(out, (q, k, v, out, lse), parts, longest, 0.125, window)
    assert [(one.shape, one.dtype) for one in gradients] == [(one.shape, one.dtype) for one in (q, k, v)]


def test_widths_are_padded_to_eights_and_what_a_gpu_cannot_is_refused() -> None:
    plan = attention_plan([[5, 4, 3], [2, 6, 1]])
    plan = plan._replace(table=plan.table.to("meta"))

    def call(width: int, values: int, dtype: torch.dtype) -> torch.Tensor:
        q, k = (torch.empty(21, heads, width, dtype=dtype, device="meta") for heads in (8, 2))
        return tree_attention(q, k, torch.empty(21, 2, values, dtype=dtype, device="meta"), plan)

    assert call(60, 36, torch.float16).shape == (21, 8, 36)
    with pytest.raises(UnsupportedAttention, match=r"attention in torch\.float32 on a GPU: float16 and bfloat16"):
        call(64, 64, torch.float32)
    with pytest.raises(UnsupportedAttention, match="attention with heads 264 wide: at most 256"):
        call(264, 264, torch.bfloat16)
