"""One run, from config to saved model; sweeps of runs, and what launches them.

Never here: a formula, a forward pass, or a word about one loss.
"""

from .launcher import run_sweep, submit, write_array
from .single import score, train
from .sweep import load_sweep

__all__ = [
    "load_sweep",
    "run_sweep",
    "score",
    "submit",
    "train",
    "write_array",
]
