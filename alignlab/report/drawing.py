"""Line and scatter charts, each drawn once and saved as SVG for a page and as PNG."""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[Any]

# Mid-bright colours that stand out on a white and on a dark page alike.
PALETTE = ("#3b82c4", "#d9622b", "#2f9e62", "#b0559e", "#a98600", "#c43b4e", "#0f9aa8", "#8a7a6a")
INK, GRID = "#010203", "#010204"  # replaced in SVG by what the page's theme says; drawn as they are in PNG
MAX_POINTS = 300
STEPS = "optimiser step"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "alignlab",  # the same chart is the same file
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Line:
    """One curve, or one cloud of points: ``x``, ``y`` ``[N]``, its label, the index of its colour and its style.

    ``style`` is "line", "dashed", "points", or "steps" for the edge of a Pareto front.
    """

    label: str
    x: Array
    y: Array
    colour: int = 0
    style: str = "line"


@dataclass
class Chart:
    """What a chart shows; ``key`` is the name of its file, ``note`` the sentences that explain it."""

    key: str
    title: str
    note: str
    y_label: str
    lines: list[Line]
    x_label: str = STEPS
    marks: list[tuple[str, float, float]] = field(default_factory=list)  # words at points

    def __bool__(self) -> bool:
        return bool(self.lines)


def thin(x: Array, y: Array, points: int = MAX_POINTS) -> tuple[Array, Array]:
    """Returns at most ``points`` points: of equal runs of neighbours the least and the largest, so that spikes stay.

    Short curves stay as they are.
    """
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points // 2 + 1).astype(int)
    runs = [(start, y[start:end]) for start, end in itertools.pairwise(edges)]
    chosen = sorted({int(start + place) for start, run in runs for place in (run.argmin(), run.argmax())})
    return x[chosen], y[chosen]


def printable(text: Any) -> str:
    """Returns text that can be shown anywhere: control, direction-changing and unpaired characters become codes.

    A right-to-left override in a row could otherwise turn the words around it. Line breaks and tabs stay.
    """
    return "".join(_code(one) if _is_hidden(one) else one for one in str(text))


_DIRECTIONS = frozenset("\ufffe\uffff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _is_hidden(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs")


def _code(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def short(text: str, length: int = 30) -> str:
    """Returns a label of at most ``length`` characters on one line."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def svg(chart: Chart) -> str:
    """Returns the chart as an SVG element that takes its ink from the page and fills the width it is given."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        _draw(chart).savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several charts share a page: the names of their parts must differ.
    text = re.sub(r'((?:id="|url\(#|href="#))', rf"\g<1>{chart.key}-", text)
    return re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)


def png(chart: Chart, path: Path) -> None:
    """Writes the chart as a PNG on white."""
    with matplotlib.rc_context(_STYLE):
        _draw(chart, title=True).savefig(path, format="png", dpi=130, facecolor="white")


def _draw(chart: Chart, title: bool = False) -> Figure:
    labelled = [line for line in chart.lines if line.label]
    labels = [short(line.label) for line in labelled]
    columns = 2 if max(map(len, labels), default=0) <= 18 else 1
    legend = 0.21 * -(-len(labels) // columns)
    # Margins in inches, given rather than found by a layout engine: that draws every chart twice.
    width, height = 4.7, 2.8 + legend
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.9 / width, (0.55 + legend) / height, 1 - 0.15 / width, 1 - 0.3 / height)
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.6, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [_line(axes, line) for line in chart.lines]
    for words, x, y in chart.marks:
        axes.annotate(short(words, 24), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.x_label == STEPS:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if title:
        axes.set_title(chart.title, fontsize=11)
    if labelled:
        shown = [handle for handle, line in zip(handles, chart.lines, strict=True) if line.label]
        figure.legend(shown, labels, loc="lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _line(axes: Any, line: Line) -> Any:
    colour = PALETTE[line.colour % len(PALETTE)]
    x, y = thin(line.x, line.y) if line.style in ("line", "dashed") else (line.x, line.y)
    if line.style == "points":
        return axes.plot(x, y, "o", color=colour, markersize=5, alpha=0.85)[0]
    if line.style == "steps":
        return axes.step(x, y, where="post", color=colour, linewidth=1.2, linestyle=":")[0]
    marker = "o" if len(x) <= 20 else None
    dashes = "--" if line.style == "dashed" else "-"
    return axes.plot(x, y, dashes, color=colour, linewidth=1.5, marker=marker, markersize=3)[0]


def thinned(charts: Iterable[Chart]) -> int:
    """Returns the most points that any curve has, where that is more than are drawn; 0 where all are drawn."""
    longest = max((len(line.x) for chart in charts for line in chart.lines), default=0)
    return longest if longest > MAX_POINTS else 0
