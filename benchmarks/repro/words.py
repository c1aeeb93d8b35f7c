"""Rewards that are sums over words, learned from pairs by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from world import WORDS, Row

PENALTY = 1.0


def counts(rows: Sequence[Row], name: str) -> Tensor:
    """Returns how often each word stands in an answer, ``[N, 24]`` float64."""
    table = torch.zeros(len(rows), len(WORDS), dtype=torch.float64)
    for index, row in enumerate(rows):
        for word in row[name][0]["content"].split():
            table[index, WORDS.index(word)] += 1
    return table


def fitted(rows: Sequence[Row]) -> Tensor:
    """Returns the worths of words ``[24]`` that fit the labels best, with an L2 penalty of half their squares.

    Logistic regression of the label on the difference of word counts, by Newton's method.
    """
    difference = counts(rows, "chosen") - counts(rows, "rejected")
    weight = torch.zeros(len(WORDS), dtype=torch.float64)
    for _ in range(50):
        wrong = torch.sigmoid(-difference @ weight)
        slope = PENALTY * weight - difference.T @ wrong
        curve = (difference.T * (wrong * (1 - wrong))) @ difference + PENALTY * torch.eye(len(WORDS)).double()
        weight = weight - torch.linalg.solve(curve, slope)
    return weight
