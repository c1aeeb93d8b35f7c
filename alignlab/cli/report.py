"""``alignlab report``: curves, samples and warnings of runs, as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the command and its options."""
    examples = ("alignlab report runs/dpo", "alignlab report runs/dpo runs/ipo --output both.html --plots")
    parser = add_command(commands, "report", run, "curves, samples and warnings of runs, as one HTML file", *examples)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of run folders")
    parser.add_argument("--output", metavar="FILE.html", help="by default report.html in the run, or in this folder")
    parser.add_argument("--plots", action="store_true", help="also the charts as PNG, in plots/ beside the file")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page of one run, or one that compares several; returns the exit status."""
    from alignlab.report import compare_runs, find_runs, write_report

    folders = []
    for name in arguments.runs:
        found = find_runs(Path(name))
        if not found:
            raise ValueError(f"{name}: no run; a run folder holds trainer_state.json, a folder of runs several of them")
        folders += found
    if len(folders) == 1:
        page = write_report(folders[0], arguments.output, arguments.plots)
    else:
        page = compare_runs(folders, arguments.output or "report.html", arguments.plots)
    print(f"{page}: {len(folders)} run{'s' if len(folders) > 1 else ''}")
    return 0
