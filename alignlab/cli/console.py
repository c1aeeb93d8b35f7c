"""Tables and text on the terminal, 120 columns wide where there is none."""

from __future__ import annotations

import sys
from typing import Any


def show(*objects: Any) -> None:
    """Prints what rich can print, brackets as brackets."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    for one in objects:
        console.print(one, markup=False, highlight=False)
