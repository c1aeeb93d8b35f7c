"""Regression on ratings: values by hand, both distances, and what does not fit."""

import math

import pytest
import torch

from alignlab import losses
from alignlab.losses import Needs, Pairs, Scored


def scored(values, ratings):
    mask = torch.ones(len(values), 2, dtype=torch.bool)
    values = torch.tensor(values, dtype=torch.float64).requires_grad_()
    ratings = torch.tensor(ratings, dtype=torch.float64)
    return Scored(torch.full(mask.shape, math.nan), mask, values=values, rewards=ratings)


def test_by_hand():
    """Errors 1, -2 of the chosen and 0, 3 of the rejected: (1 + 4 + 0 + 9) / 4; Huber's (1/2 + 3/2 + 0 + 5/2) / 4."""
    batch = Pairs(scored([[2.0, 0.0]], [[1.0, 2.0]]), scored([[1.0, 3.0]], [[1.0, 0.0]]))
    out = losses.build("reward_regression", outputs=2)(batch)
    assert out.loss.tolist() == [3.5]
    assert losses.build("reward_regression", outputs=2, distance="huber")(batch).loss.tolist() == [1.125]
    assert (out.chosen_rewards.tolist(), out.rejected_rewards.tolist()) == ([1.0], [2.0])
    assert [one.item() for one in out.metrics["regression/error"]] == [1.5, 1.0]
    (slope,) = torch.autograd.grad(out.loss.sum(), batch.chosen.values)
    assert slope.tolist() == [[0.5, -1.0]]  # 2 (v - rating) / 4


def test_needs_and_refusals():
    loss = losses.build("reward_regression", outputs=3)
    assert loss.needs == Needs(logps=False, values=3, rewards=3)
    with pytest.raises(ValueError, match="a rating for each output, found 2 outputs and 1 ratings"):
        loss(Pairs(scored([[1.0, 2.0]], [[1.0]]), scored([[1.0, 2.0]], [[1.0]])))
    with pytest.raises(ValueError, match=r"loss\.outputs must be a whole number >= 1, found 0"):
        losses.build("reward_regression", outputs=0)
    with pytest.raises(ValueError, match=r"loss\.distance must be one of squared, huber"):
        losses.build("reward_regression", distance="cosine")
