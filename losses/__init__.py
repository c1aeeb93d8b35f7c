"""The zoo: one loss a file; the folder is the registry."""

from ._base import Batch, Facts, Labelled, Loss, LossOutput, Metrics, Needs, Pairs, Scored, Totals
from ._registry import Description, build, describe, from_function, names

__all__ = [
    "Batch",
    "Description",
    "Facts",
    "Labelled",
    "Loss",
    "LossOutput",
    "Metrics",
    "Needs",
    "Pairs",
    "Scored",
    "Totals",
    "build",
    "describe",
    "from_function",
    "names",
]
