"""Charts as text: points, ink, and names that would disturb a page."""

import numpy as np

from alignlab.report.drawing import MAX_POINTS, Chart, Line, printable, svg, thin


def test_printable_keeps_other_scripts():
    """Emoji with joiners, Arabic and accents stay; a lone surrogate, which UTF-8 cannot hold, becomes a code."""
    text = "naïve 👩‍🔬 مرحبا\n\tx"
    assert printable(text) == text
    assert printable("a\u2066b\ud800c\x1b") == "a⟨U+2066⟩b⟨U+D800⟩c⟨U+001B⟩"


def test_long_curves_keep_their_spikes():
    """6000 points of 0 with one spike up and one down: 300 points at most, and both spikes among them, in order."""
    x, y = np.arange(6000), np.zeros(6000)
    y[1234], y[4321] = 50.0, -7.0
    steps, values = thin(x, y)
    assert len(steps) <= MAX_POINTS
    assert np.all(np.diff(steps) > 0)
    assert dict(zip(steps.tolist(), values.tolist(), strict=True))[1234] == 50.0
    assert values.min() == -7.0


def test_thinning_takes_the_least_and_the_largest_of_equal_runs():
    """900 rising points in 150 runs of six: the first and the last of each."""
    steps, values = thin(np.arange(900), np.arange(900) * 2.0)
    assert steps.tolist() == [step for start in range(0, 900, 6) for step in (start, start + 5)]
    assert np.array_equal(values, 2 * steps)
    assert np.array_equal(thin(steps[:300], steps[:300])[0], steps[:300])


def test_a_chart_is_the_same_text_each_time_and_takes_its_ink_from_the_page():
    chart = Chart("k", "t", "", "y", [Line("a & <b>", np.arange(3), np.arange(3.0))])
    text = svg(chart)
    assert text == svg(chart)
    assert text.startswith('<svg viewBox="0 0 ')
    assert "currentColor" in text
    assert "#010203" not in text
    assert "a &amp; &lt;b&gt;" in text
