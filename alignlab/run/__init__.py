"""One run, from config to saved model; sweeps of runs, and what launches them.

Never here: a formula, a forward pass, or a word about one loss.
"""

from .launcher import run_sweep, submit, write_array
from .search import is_search, load_search
from .single import score, train
from .sweep import load_sweep
from .trial import run_trial
from .worker import counted, run_search, trials_of, write_workers

__all__ = [
    "counted",
    "is_search",
    "load_search",
    "load_sweep",
    "run_search",
    "run_sweep",
    "run_trial",
    "score",
    "submit",
    "train",
    "trials_of",
    "write_array",
    "write_workers",
]
