"""How much time a run needs to stop in order."""

from __future__ import annotations

from alignlab.checkpoints.early_stop import WallClock


def test_the_clock_leaves_time_for_a_step_and_a_save_twice() -> None:
    """Of 10,000,000 s nothing is used. Needed: 2 (step + save), with an evaluation due 2 (step + save + evaluation)."""
    clock = WallClock(1e7)
    assert clock.save == 5e5  # before the first save: 5 % of the limit
    clock.step = 4.4e6
    assert not clock.is_short(evaluates=False)  # 2 * 4.9e6 < 1e7
    clock.step = 4.6e6
    assert clock.is_short(evaluates=False)  # 2 * 5.1e6 > 1e7
    clock.step, clock.evaluation = 1e6, 3.9e6
    assert not clock.is_short(evaluates=False)
    assert clock.is_short(evaluates=True)
    clock.save_done()
    assert clock.save < 100  # measured now, no longer taken from the limit
    assert not clock.is_short(evaluates=True)  # 2 * 4.9e6 < 1e7
    clock.limit = 2 * 4.9e6 + 5  # 10 s are for ending
    assert clock.is_short(evaluates=True)
