"""How far something is, in words and with a clock that the tests turn."""

import sys

import pytest

from alignlab.runtime import Lines, clock_time, shown_as


def test_a_line_every_so_many_seconds():
    """Two steps a second, a line each 30 s: at 60, 120, ... steps; none at the end, where others speak."""
    now, said = [0.0], []
    lines = Lines("training", 300, "steps", 30, done=100, say=said.append, clock=lambda: now[0])
    for _ in range(200):
        now[0] += 0.5
        lines.update()
    assert said == [
        "training: 160 of 300 steps (53%), 2 a second, 1:10 min left",
        "training: 220 of 300 steps (73%), 2 a second, 40 s left",
        "training: 280 of 300 steps (93%), 2 a second, 10 s left",
    ]


def test_of_unknown_length():
    now, said = [0.0], []
    lines = Lines("reading", None, "rows", 10, say=said.append, clock=lambda: now[0])
    now[0] = 20.0
    lines.update(50)
    assert said == ["reading: 50 rows, 2.5 a second"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1:00 min"), (3599, "59:59 min"), (3661, "1:01 h"), (172800, "2 d 0 h"), (360000, "4 d 4 h")],
)
def test_times_as_people_read_them(seconds, text):
    assert clock_time(seconds) == text


def test_live_on_a_terminal_alone(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert shown_as(environment={}) == "live"
    assert shown_as(environment={"SLURM_JOB_ID": "1"}) == "lines"
    assert shown_as(environment={"TERM": "dumb"}) == "lines"
    assert shown_as("live", environment={"SLURM_JOB_ID": "1"}) == "live"
    assert shown_as(bars=False, environment={}) == "lines"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert shown_as(environment={}) == "lines"
    assert shown_as("none") == "none"
