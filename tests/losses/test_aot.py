"""AOT: golden cases, one row, permutations, weights."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import _examples


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_golden(golden, name, setting):
    """Rows stand in sorted order, so losses are compared sorted; gradients by sequence."""
    case, batch = golden.case(name, setting), golden.pairs()
    out = golden.check(name, setting, losses.build("aot", **case.hparams), batch, per_example=False)
    golden.close(out.loss.sort().values, sorted(case.outputs["per_example"]))


@pytest.mark.parametrize("paired", [True, False])
def test_one_row_is_dpo(exact, paired):
    row = _examples.take(exact.pairs(), torch.tensor([2]))
    found = losses.build("aot", beta=0.1, paired=paired)(row).loss
    torch.testing.assert_close(found, losses.build("dpo")(row).loss)


def test_log_two_at_reference(exact, at_reference):
    batch = at_reference(exact.pairs())
    for paired in (True, False):
        out = losses.build("aot", paired=paired)(batch)
        torch.testing.assert_close(out.loss, torch.full((6,), math.log(2), dtype=torch.float64))


def test_only_rows_of_weight_one_are_sorted(exact):
    batch = exact.pairs()
    batch.weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    kept = _examples.take(exact.pairs(), torch.tensor([0, 1, 3, 5]))
    found, expected = losses.build("aot")(batch).loss, losses.build("aot")(kept).loss
    torch.testing.assert_close(found[batch.weight > 0], expected)
    assert found[batch.weight == 0].tolist() == [0.0, 0.0]
    batch.weight[0] = 0.5
    with pytest.raises(ValueError, match="cannot be weighted"):
        losses.build("aot")(batch)


def test_groups_cannot_weigh_it():
    with pytest.raises(ValueError, match=r"loss\.base: AOT couples the rows of a micro-batch"):
        losses.build("group_robust", base="aot")
