"""Held-out pairs are scored exactly, in any layout and batch."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.data import sequence
from alignlab.evaluation import log_likelihoods
from alignlab.evaluation.pairs import score_pairs
from alignlab.scoring import choose_layout

PAD = 0


def test_pairs_are_scored_as_a_plain_forward_does(policy: Any, other: Any, dataset: Any) -> None:
    """Sums over completion tokens, under both models; packed or padded, whatever the batch."""
    rows = score_pairs(policy, dataset, PAD, other, batch_size=3)
    assert [row.row for row in rows] == list(range(7))
    for name in ("chosen", "rejected"):
        sequences = [sequence(row, name) for row in dataset]
        for model, prefix in ((policy, ""), (other, "ref_")):
            expected = log_likelihoods(model, sequences, PAD).tolist()
            assert [getattr(row, f"{prefix}{name}_logp") for row in rows] == pytest.approx(expected, abs=1e-3)
        assert [getattr(row, f"{name}_tokens") for row in rows] == [int(one.mask.sum()) for one in sequences]
    assert [row.group for row in rows] == list(dataset["group"])
    mode = choose_layout("packed", [policy, other], PAD)
    packed = score_pairs(policy, dataset, PAD, other, batch_size=7, mode=mode)
    for one, two in zip(rows, packed, strict=True):
        assert [one.chosen_logp, one.ref_rejected_logp] == pytest.approx(
            [two.chosen_logp, two.ref_rejected_logp], abs=1e-3
        )
