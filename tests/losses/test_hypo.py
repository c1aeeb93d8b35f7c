"""HyPO: golden cases, its limits, and the gradient of the exact KL on a world of two tokens."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from alignlab import losses
from alignlab.losses import Needs, Pairs, Scored


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    case = golden.case("hypo", setting)
    batch = replace(golden.pairs(), online=golden.scored("online"))
    out = losses.build("hypo", beta=case.hparams["beta"], weight=case.hparams["lambda"])(batch)
    golden.close(out.loss.mean(), case.outputs["loss"])
    total, count = out.metrics["online/kl"]
    golden.close(total / count, case.outputs["kl_estimate"])
    golden.close_gradients(out.loss.mean(), batch, case.seq_grad)


@pytest.mark.parametrize("base", ["dpo", "ipo", "simpo", "rpo"])
def test_limits(exact, base):
    """Weight 0 is the base; where policy == reference the KL term has no gradient."""
    batch = replace(exact.pairs(), online=exact.scored("online"))
    found = losses.build("hypo", base=base, weight=0.0)(batch)
    torch.testing.assert_close(found.loss, losses.build(base)(batch).loss)
    torch.testing.assert_close(found.chosen_rewards, losses.build(base)(batch).chosen_rewards)
    batch.online.ref_logps = batch.online.logps.detach().clone()
    (slope,) = torch.autograd.grad(losses.build("hypo", base=base)(batch).loss.mean(), batch.online.logps)
    assert not slope.any()


def test_the_gradient_is_that_of_the_kl_on_a_world_of_two_tokens():
    """Answers of two tokens from an alphabet of two, and one logit a context: 1, then 0 or 1 behind it.

    The expectation over the four answers, weighted by their probability under the policy, of the gradient of
    sg(L - R) L is the gradient of KL = sum_y p(y) (log p(y) - log q(y)), enumerated.
    """
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.5, 0.2, 0.4], dtype=torch.float64)

    def tokens(of, answer):
        first, second = answer
        at = torch.stack((of[0], of[1 + first]))
        signs = torch.tensor([2.0 * first - 1, 2.0 * second - 1], dtype=torch.float64)
        return torch.nn.functional.logsigmoid(signs * at)

    answers = list(product((0, 1), repeat=2))
    logps = torch.stack([tokens(logits, answer) for answer in answers])
    ref_logps = torch.stack([tokens(reference, answer) for answer in answers])
    kl = (logps.sum(-1).exp() * (logps - ref_logps).sum(-1)).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    mask = torch.ones(4, 2, dtype=torch.bool)
    flat = Scored(torch.zeros(4, 2, dtype=torch.float64), mask, ref_logps=torch.zeros(4, 2, dtype=torch.float64))
    batch = Pairs(flat, flat, online=Scored(logps, mask, ref_logps=ref_logps))
    probability = logps.detach().sum(-1).exp()
    (found,) = torch.autograd.grad((losses.build("hypo", weight=1.0)(batch).loss * probability).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().min() > 1e-3


def test_needs_and_refusals(exact):
    assert losses.build("hypo").needs == Needs(ref_logps=True, online=True)
    with pytest.raises(ValueError, match=r"loss\.base: KTO is no loss of pairs"):
        losses.build("hypo", base="kto")
    with pytest.raises(ValueError, match=r"loss\.base: TDPO reads more of pairs"):
        losses.build("hypo", base="tdpo")
    with pytest.raises(ValueError, match=r"loss\.beta belongs to the base"):
        losses.build("hypo", base="dpo", beta=0.1)
    with pytest.raises(ValueError, match="needs fresh samples of the policy"):
        losses.build("hypo")(exact.pairs())
