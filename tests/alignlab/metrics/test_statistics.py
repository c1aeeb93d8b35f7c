"""Intervals against a textbook and against each other."""

import numpy as np
import pytest

from alignlab.metrics import statistics


def test_wilson_interval_of_a_textbook():
    """8 of 10: (0.4902, 0.9433); 0 of 10: (0, 0.2775)."""
    assert statistics.wilson_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert statistics.wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    """1,000 coin tosses: half width near 1.96 * 0.5 / sqrt(1000) = 0.031, around the mean; the seed decides."""
    values = np.arange(1000) % 2
    low, high = statistics.bootstrap_interval(values, 2000, seed=1)
    assert (high - low) / 2 == pytest.approx(0.031, abs=0.002)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.002)
    assert statistics.bootstrap_interval(values, 2000, seed=1) == (low, high)
