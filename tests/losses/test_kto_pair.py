"""KTO on pairs: golden cases, and what carries no gradient."""

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    """The golden rows are 6 chosen, then 6 rejected; a row here is the mean of its two."""
    case, batch = golden.case("kto_pair", setting), golden.pairs()
    out = golden.check("kto_pair", setting, losses.build("kto_pair", **case.hparams), batch, per_example=False)
    rows = torch.tensor(case.outputs["per_example"], dtype=golden.dtype)
    golden.close(out.loss, (rows[:6] + rows[6:]) / 2)
    for side in ("chosen", "rejected"):
        total, count = out.metrics[f"kl/{side}"]
        golden.close(total / count, case.outputs[f"kl_{side}"])


def test_half_at_reference(exact, at_reference):
    out = losses.build("kto_pair")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 0.5, dtype=torch.float64))
