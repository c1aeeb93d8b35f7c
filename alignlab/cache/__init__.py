"""Scores of frozen models on disk, under the identity of the model that made them.

Never here: the trainer, a loss, or a hyper-parameter: content alone makes a key.
"""

from .admin import CacheEntry, cache_info, cache_prune, cache_verify
from .fingerprint import fingerprint_model
from .fingerprint_files import fingerprint_path
from .store import COLUMN, ScoreCache, ScoreStore, default_root

__all__ = [
    "COLUMN",
    "CacheEntry",
    "ScoreCache",
    "ScoreStore",
    "cache_info",
    "cache_prune",
    "cache_verify",
    "default_root",
    "fingerprint_model",
    "fingerprint_path",
]
