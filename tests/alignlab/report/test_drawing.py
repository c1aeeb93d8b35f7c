"""Charts as text: points, ink, and names that would disturb a page."""

import numpy as np

from alignlab.report.drawing import MAX_POINTS, Chart, Line, printable, svg, thin


def test_printable_keeps_other_scripts():
    """Emoji with joiners, Arabic and accents stay; a lone surrogate, which UTF-8 cannot hold, becomes a code."""
    text = "naïve 👩‍🔬 مرحبا\n\tx"
    assert printable(text) == text
    assert printable("a\u2066b\ud800c\x1b") == "a⟨U+2066⟩b⟨U+D800⟩c⟨U+001B⟩"


def test_long_curves_are_drawn_as_means_of_neighbours():
    """900 points to 300: each the mean of three, so 0 1 2 is drawn at 1."""
    x = np.arange(900)
    steps, values = thin(x, x * 2.0)
    assert len(steps) == MAX_POINTS
    assert steps.tolist() == list(range(1, 900, 3))
    assert np.array_equal(values, 2 * steps)
    assert np.array_equal(thin(x[:300], x[:300])[0], x[:300])


def test_a_chart_is_the_same_text_each_time_and_takes_its_ink_from_the_page():
    chart = Chart("k", "t", "", "y", [Line("a & <b>", np.arange(3), np.arange(3.0))])
    text = svg(chart)
    assert text == svg(chart)
    assert text.startswith('<svg viewBox="0 0 ')
    assert "currentColor" in text
    assert "#010203" not in text
    assert "a &amp; &lt;b&gt;" in text
