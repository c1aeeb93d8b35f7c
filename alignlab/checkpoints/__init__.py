"""How a run survives: checkpoints whole or not at all, one run a folder, early stops.

Never here: the trainer or a model: folders, files, signals and the state of a loss.
"""

from .early_stop import SIGNALS, STOPPED_EARLY, EarlyStop, StoppedEarly, StopSignals
from .folders import check, holds_checkpoints, newest_good, rotate, written_aside
from .in_place import is_peoples_own, put_in_place, remove_asides, whole_file, write_whole
from .lock import is_run_in, only_run_in
from .loss_state import load_loss, save_loss
from .universal import is_of_other_ranks, load_universal

__all__ = [
    "SIGNALS",
    "STOPPED_EARLY",
    "EarlyStop",
    "StopSignals",
    "StoppedEarly",
    "check",
    "holds_checkpoints",
    "is_of_other_ranks",
    "is_peoples_own",
    "is_run_in",
    "load_loss",
    "load_universal",
    "newest_good",
    "only_run_in",
    "put_in_place",
    "remove_asides",
    "rotate",
    "save_loss",
    "whole_file",
    "write_whole",
    "written_aside",
]
