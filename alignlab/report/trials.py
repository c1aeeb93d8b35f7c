"""The trials of a search on a page: what each drew and came to, the best one, and which keys matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .drawing import Chart, Line
from .tables import Rows, format_value


def trials_table(search: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Returns head and rows of the table of trials, the best of the finished ones first."""
    keys = list(dict.fromkeys(key for one in search["trials"] for key in one["drawn"]))
    rows: Rows = []
    for one in sorted(search["trials"], key=lambda one: _place(one, search["direction"])):
        state = "complete, the best" if one["trial"] == search["best"] else one["state"]
        value = "" if one["value"] is None else f"{one['value']:.6g}"
        drawn = [format_value(one["drawn"][key]) if key in one["drawn"] else "" for key in keys]
        rows.append((f"trial-{one['trial']}", state, value, *drawn, one["note"]))
    return ["trial", "state", search["metric"], *keys, ""], rows


def _place(one: Mapping[str, Any], direction: str) -> tuple[bool, float, int]:
    if one["state"] != "complete":
        return True, 0.0, one["trial"]
    return False, -one["value"] if direction == "maximize" else one["value"], one["trial"]


def importance_table(search: Mapping[str, Any]) -> Rows:
    """Returns each key and its part in how good a trial is, the largest first; empty where that is not known."""
    found = sorted(search["importance"].items(), key=lambda one: -one[1])
    return [(key, f"{part:.0%}") for key, part in found]


def trials_chart(search: Mapping[str, Any]) -> Chart:
    """Returns the value of each finished trial, and the best up to there."""
    complete = [one for one in search["trials"] if one["state"] == "complete"]
    lines = []
    if complete:
        numbers = np.array([one["trial"] for one in complete])
        values = np.array([one["value"] for one in complete], dtype=float)
        so_far = (np.maximum if search["direction"] == "maximize" else np.minimum).accumulate(values)
        lines = [Line("trial", numbers, values, 0, "points"), Line("best so far", numbers, so_far, 7, "steps")]
    note = "Trials that came to their end; those that were given up or failed are left out."
    return Chart("trials", f"Search: {search['metric']}", note, search["metric"], lines, "trial")
