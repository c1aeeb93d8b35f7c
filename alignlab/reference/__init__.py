"""Frozen models that losses measure against: which they are, how they run, how their scores come into the cache.

Never here: a gradient, or the trainer.
"""

from .filling import fill_caches
from .frozen import REFERENCE, AdapterOff, OtherAdapter
from .scorers import Frozen, choose_mode, frozen_scorers
from .sync import ReferenceSync, check_sync

__all__ = [
    "REFERENCE",
    "AdapterOff",
    "Frozen",
    "OtherAdapter",
    "ReferenceSync",
    "check_sync",
    "choose_mode",
    "fill_caches",
    "frozen_scorers",
]
