"""Rows on disk to tensors."""

from .options import DataOptions
from .prepare import Prepared, prepare
from .schema import BadRow, DataReport, SourceReport
from .tokenise import content_key

__all__ = [
    "BadRow",
    "DataOptions",
    "DataReport",
    "Prepared",
    "SourceReport",
    "content_key",
    "prepare",
]
