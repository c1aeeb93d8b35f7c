"""SFT: the three reductions by hand, on pairs and on labelled rows."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Labelled, Pairs, Scored

# Row 0: two tokens, -1 and -2; row 1: one token, -6.
LOGPS, MASK = torch.tensor([[-1.0, -2.0], [-6.0, float("nan")]]), torch.tensor([[True, True], [True, False]])


def pairs():
    return Pairs(Scored(LOGPS, MASK), Scored(LOGPS - 1, MASK))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token", (3 + 6) / 3), ("example", (1.5 + 6) / 2), ("sum", (3 + 6) / 2)],
)
def test_reductions_by_hand(reduction, expected):
    out = losses.build("sft", reduction=reduction)(pairs())
    assert out.loss.mean().item() == pytest.approx(expected)
    total, count = out.metrics["nll_loss"]
    assert (total / count).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token", (3 + 6) / 3), ("example", (1.5 + 6) / 2), ("sum", (3 + 6) / 2)],
)
def test_only_desirable_rows_count(reduction, expected):
    """A third, undesirable row adds nothing and does not enter any mean."""
    logps = torch.cat([LOGPS, torch.tensor([[-9.0, -9.0]])]).requires_grad_()
    mask = torch.cat([MASK, torch.ones(1, 2).bool()])
    batch = Labelled(Scored(logps, mask), torch.tensor([True, True, False]))
    out = losses.build("sft", reduction=reduction, data="labelled")(batch)
    assert out.loss.mean().item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(out.loss.mean(), logps)
    assert not gradient[2].any()
    assert gradient[0, 0] < 0


def test_no_desirable_row():
    batch = Labelled(Scored(LOGPS, MASK), torch.tensor([False, False]))
    assert losses.build("sft", data="labelled")(batch).loss.tolist() == [0.0, 0.0]


def test_weighted_tokens():
    """Weights 1 and 3: the token mean is (1 * 3 + 3 * 6) / (1 * 2 + 3 * 1) = 4.2, as sum(w * loss) / sum(w)."""
    batch = pairs()
    batch.weight = torch.tensor([1.0, 3.0])
    loss = losses.build("sft")(batch).loss
    assert ((loss * batch.weight).sum() / 4).item() == pytest.approx(4.2)


def test_totals_read_masks_only():
    """Counts are known before any forward: NaN scores give the same totals."""
    loss, batch = losses.build("sft"), pairs()
    batch.chosen.logps = torch.full_like(LOGPS, float("nan"))
    assert {name: value.item() for name, value in loss.totals(batch).items()} == {
        "rows": 2.0,
        "learned_rows": 2.0,
        "tokens": 3.0,
    }
