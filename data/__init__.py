"""Rows on disk to tensors."""

from .check import LengthBias, Lengths, Statistics, check, render, statistics
from .options import DataOptions
from .prepare import Prepared, prepare
from .schema import BadRow, DataReport, SourceReport
from .tokenise import content_key

__all__ = [
    "BadRow",
    "DataOptions",
    "DataReport",
    "LengthBias",
    "Lengths",
    "Prepared",
    "SourceReport",
    "Statistics",
    "check",
    "content_key",
    "prepare",
    "render",
    "statistics",
]
