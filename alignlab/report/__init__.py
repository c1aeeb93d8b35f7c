"""What a run left in its folder, read and shown: curves, tables, sicknesses, one HTML file.

Never here: a model, or anything that is not in the folder.
"""

from .card import CARD, card, write_card
from .page import PAGE, compare_runs, write_report
from .records import find_runs

__all__ = [
    "CARD",
    "PAGE",
    "card",
    "compare_runs",
    "find_runs",
    "write_card",
    "write_report",
]
