"""WPO: golden cases down to the logits, weights and their clamp."""

import math

import pytest
import torch

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case, (batch, logits) = golden.case("wpo", setting), golden.distribution_pairs()
    out = losses.build("wpo", **case.hparams)(batch)
    golden.close(out.loss, case.outputs["per_example"])
    golden.close(out.loss.mean(), case.outputs["loss"])
    total, count = out.metrics["wpo/weight"]
    golden.close(total / count, sum(case.outputs["weight"]) / 6)
    golden.close_logit_gradients(out.loss.mean(), logits, case.logit_grad)


def test_weights_scale_dpo(exact):
    """The loss is the weight times DPO's, and the weight has no gradient."""
    case, (batch, _) = exact.case("wpo", 0), exact.distribution_pairs()
    found, plain = losses.build("wpo", **case.hparams)(batch).loss, losses.build("dpo")(batch).loss
    torch.testing.assert_close(found / plain, torch.tensor(case.outputs["weight"], dtype=torch.float64))


def test_clamp_caps_the_product(exact):
    """Certain tokens under a spread-out distribution weigh more than 1, and 1 with the clamp."""
    batch, _ = exact.distribution_pairs()
    for side in (batch.chosen, batch.rejected):
        side.second_moment = side.logps.detach() - 1
    plain = losses.build("dpo", beta=0.01)(batch).loss
    torch.testing.assert_close(losses.build("wpo")(batch).loss, plain)
    torch.testing.assert_close(losses.build("wpo", clamp=False)(batch).loss, math.exp(2.0) * plain)
