"""Lengths of time, as seconds and as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.config.checks import duration


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (90, 90.0), ("90", 90.0), (0.5, 0.5), ("01:30:05", 5405.0), ("2-00:00:10", 172810.0)],
)
def test_durations(given: Any, seconds: float | None) -> None:
    assert duration("max_wall_time", given) == seconds


@pytest.mark.parametrize("given", [0, -1, "1:30", "00:60:00", "soon", "nan", float("inf")])
def test_wrong_durations(given: Any) -> None:
    with pytest.raises(ValueError, match=r"max_wall_time: expected seconds, or time as \[D-\]HH:MM:SS, more than 0"):
        duration("max_wall_time", given)
