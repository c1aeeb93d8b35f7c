"""Hybrid DPO: golden cases, and DPO where the reference ranks correctly."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("hybrid_dpo", setting, losses.build("hybrid_dpo", **golden.case("hybrid_dpo", setting).hparams))


def test_dpo_where_the_reference_is_right(exact):
    """Rows with R_w > R_l have DPO's loss, the others that of a reference without a preference."""
    batch = exact.pairs()
    found, plain = losses.build("hybrid_dpo")(batch).loss, losses.build("dpo")(batch).loss
    right = batch.chosen.sum_ref_logps > batch.rejected.sum_ref_logps
    assert right.tolist() == [True, True, False, True, False, False]
    torch.testing.assert_close(found[right], plain[right], rtol=0, atol=1e-14)
    free = losses.build("cpo", alpha=0.0)(batch).loss
    torch.testing.assert_close(found[~right], free[~right], rtol=0, atol=1e-14)
