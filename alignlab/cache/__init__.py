"""Scores and prepared rows on disk, under the identity of what they were made from.

Never here: the trainer, a loss, or a hyper-parameter: content alone makes a key.
"""

from .admin import cache_info, cache_prune, cache_verify
from .entries import CacheEntry
from .fingerprint import fingerprint_model
from .fingerprint_files import fingerprint_path
from .prepared import PreparedSets, file_memory
from .store import COLUMN, ScoreCache, ScoreStore, default_root

__all__ = [
    "COLUMN",
    "CacheEntry",
    "PreparedSets",
    "ScoreCache",
    "ScoreStore",
    "cache_info",
    "cache_prune",
    "cache_verify",
    "default_root",
    "file_memory",
    "fingerprint_model",
    "fingerprint_path",
]
