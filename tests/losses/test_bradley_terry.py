"""Bradley-Terry: values by hand, its terms one by one, and figures of calibration and length."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Needs, Pairs, Scored


def pairs(good, bad, lengths=None, **columns):
    """Returns pairs with these rewards, of completions of so many tokens."""
    lengths = lengths or ([1] * len(good), [1] * len(bad))

    def scored(values, counts):
        mask = torch.arange(4)[None] < torch.tensor(counts)[:, None]
        values = torch.tensor(values, dtype=torch.float64)[:, None].requires_grad_()
        return Scored(torch.full(mask.shape, math.nan), mask, values=values)

    columns = {name: torch.tensor(value) for name, value in columns.items()}
    return Pairs(scored(good, lengths[0]), scored(bad, lengths[1]), **columns)


def test_by_hand():
    """d = 1 and -2: log(1 + e^-1) = 0.31326 and log(1 + e^2) = 2.12693; d loss / d r_w = -sigmoid(-d)."""
    batch = pairs([1.0, 0.5], [0.0, 2.5])
    out = losses.build("bradley_terry")(batch)
    torch.testing.assert_close(out.loss, torch.tensor([0.3132617, 2.1269280], dtype=torch.float64))
    (slope,) = torch.autograd.grad(out.loss.sum(), batch.chosen.values)
    torch.testing.assert_close(slope[:, 0], torch.tensor([-0.2689414, -0.8807971], dtype=torch.float64))
    assert out.chosen_rewards.tolist() == [1.0, 0.5]
    assert out.rejected_rewards.tolist() == [0.0, 2.5]


def test_margin_centring_and_smoothing():
    """A margin moves d; centring adds c (r_w + r_l)^2; smoothing mixes the loss with that of swapped labels."""
    batch = pairs([1.0, 0.5], [0.0, 2.5], margin=[1.0, -2.0])
    plain = losses.build("bradley_terry")
    found = losses.build("bradley_terry", margin=True)(batch).loss
    torch.testing.assert_close(found, torch.full((2,), math.log(2), dtype=torch.float64))
    found = losses.build("bradley_terry", centring=0.01)(batch).loss - plain(batch).loss
    torch.testing.assert_close(found, torch.tensor([0.01, 0.09], dtype=torch.float64))
    swapped = plain(Pairs(batch.rejected, batch.chosen)).loss
    found = losses.build("bradley_terry", label_smoothing=0.2)(batch).loss
    torch.testing.assert_close(found, 0.8 * plain(batch).loss + 0.2 * swapped)


def test_calibration_and_length():
    """Lengths 3 > 1, 1 < 2 and equal: the longer one wins once of twice, and is the chosen one once of twice."""
    batch = pairs([0.0, 0.0, 5.0], [1.0, -1.0, 0.0], ([3, 1, 2], [1, 2, 2]))
    metrics = losses.build("bradley_terry")(batch).metrics
    assert [one.item() for one in metrics["length/longer_wins"]] == [0, 2]
    assert [one.item() for one in metrics["length/longer_chosen"]] == [1, 2]
    total, count = metrics["calibration/brier"]
    expected = sum((1 - 1 / (1 + math.exp(-d))) ** 2 for d in (-1, 1, 5))
    assert (total.item(), count.item()) == pytest.approx((expected, 3))


def test_needs_one_value_and_no_log_probability():
    assert losses.build("bradley_terry").needs == Needs(logps=False, values=1)
    assert not losses.build("bradley_terry").needs.reference
    batch = pairs([1.0], [0.0])
    batch.chosen.values = torch.ones(1, 2)
    with pytest.raises(ValueError, match="reads one value a completion, found 2"):
        losses.build("bradley_terry")(batch)


def test_refusals():
    with pytest.raises(ValueError, match=r"loss\.label_smoothing must be in \[0.0, 0.5\)"):
        losses.build("bradley_terry", label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"loss\.centring must be a finite number >= 0"):
        losses.build("bradley_terry", centring=-1)
    with pytest.raises(ValueError, match="needs the column 'margin'"):
        losses.build("bradley_terry", margin=True)(pairs([1.0], [0.0]))
    with pytest.raises(ValueError, match=r"same number of values of a head, found \[0, 1\]"):
        losses.build({"name": "weighted_sum", "parts": ["bradley_terry", "sft"]})
    with pytest.raises(ValueError, match="not both: 1 values go without logps, ref_logps"):
        Needs(values=1, ref_logps=True)


def test_groups_are_weighted_as_with_any_loss():
    """Two groups of 3 and 1 rows of 4 under fixed weights: G_g = N / N_g times the mean of the group's rows."""
    loss = losses.build({"name": "group_robust", "base": "bradley_terry", "weighting": "fixed"})
    loss.bind(losses.Facts(rows=4, groups={"a": 3, "b": 1}))
    batch = pairs([1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 3.0], group=[0, 0, 0, 1])
    each = losses.build("bradley_terry")(batch).loss
    expected = 0.5 * each[:3].mean() + 0.5 * each[3]
    torch.testing.assert_close(loss(batch).loss.mean(), expected)
