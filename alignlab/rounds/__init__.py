"""The loop: sample, judge, pair, train, and again; stages that survive any kill, and a report over the rounds.

Never here: a formula or a forward pass: every stage is another room's work.
"""

from .config import RoundsConfig
from .driver import Rounds
from .loading import load_rounds
from .report import best_line, round_rows, table, write_report
from .slurm import write_chain

__all__ = ["Rounds", "RoundsConfig", "best_line", "load_rounds", "round_rows", "table", "write_chain", "write_report"]
