"""NCA: golden cases, its value at the reference, and BCO-pair."""

import math

import pytest
import torch
from making_lists import gradient, lists_of_ratios

from alignlab import losses


@pytest.mark.parametrize("setting", [0, 1])
def test_golden(golden, setting):
    golden.check("nca_pair", setting, losses.build("nca", **golden.case("nca_pair", setting).hparams))


def test_two_log_two_at_reference(exact, at_reference):
    out = losses.build("nca")(at_reference(exact.pairs()))
    torch.testing.assert_close(out.loss, torch.full((6,), 2 * math.log(2), dtype=torch.float64))


def test_rejected_side_alone_lowers_the_rejected(exact):
    """The slope on L_l is +0.5 beta s(beta b), on L_w -beta s(-beta a) + 0.5 beta s(beta a)."""
    batch, beta = exact.pairs(), 0.3
    out = losses.build("nca", beta=beta)(batch)
    chosen, rejected = torch.autograd.grad(out.loss.sum(), [batch.chosen.logps, batch.rejected.logps])
    a, b = beta * batch.chosen.log_ratios, beta * batch.rejected.log_ratios
    torch.testing.assert_close(rejected[:, 0], 0.5 * beta * torch.sigmoid(b))
    torch.testing.assert_close(chosen[:, 0], -beta * torch.sigmoid(-a) + 0.5 * beta * torch.sigmoid(a))


def test_lists_by_hand():
    """beta 1, r = log 2, 0, -log 2; q = (1/2, 1/4, 1/4): -q log s(r) = (log 3/2) / 2 + (log 2) / 4 + (log 3) / 4;
    -log s(-r) = log 3, log 2, log 3/2, a third of each."""
    ratios = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64).log()
    lists = lists_of_ratios(ratios, [[math.log(2), 0.0, 0.0]])
    out = losses.build("nca", beta=1.0, data="lists", alpha=1.0)(lists)
    gain = math.log(1.5) / 2 + math.log(2) / 4 + math.log(3) / 4
    rest = (math.log(3) + math.log(2) + math.log(1.5)) / 3
    assert out.loss.item() == pytest.approx(gain + rest, rel=1e-14)
    slopes = torch.tensor([0.5, 0.25, 0.25]) * -torch.sigmoid(-ratios) + torch.sigmoid(ratios) / 3
    torch.testing.assert_close(gradient(out.loss, lists), slopes)


def test_lists_as_the_released_code_has_them():
    draw = torch.Generator().manual_seed(0)
    ratios, scores = (torch.randn(50, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    rewards, log_sigmoid = 0.5 * ratios, torch.nn.functional.logsigmoid
    soft = -((scores / 0.3).softmax(-1) * log_sigmoid(rewards)).sum(-1).mean()
    found = losses.build("nca", beta=0.5, data="lists", alpha=0.3)(lists_of_ratios(ratios, scores.tolist())).loss
    torch.testing.assert_close(found.mean(), soft - log_sigmoid(-rewards).mean())


def test_pairs_have_no_alpha():
    with pytest.raises(ValueError, match=r"loss\.alpha is the temperature of a list's scores: write data: lists"):
        losses.build("nca", alpha=0.1)
