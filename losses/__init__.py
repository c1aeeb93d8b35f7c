"""The zoo: one loss a file; the folder is the registry.

Never here: a model, a file or a collective: a loss sees tensors.
"""

from ._base import Batch, Facts, Labelled, Listed, Loss, LossOutput, Metrics, Needs, Pairs, Totals, bind
from ._contract import CHECKS, check
from ._papers import bibtex
from ._registry import Description, build, describe, from_function, is_own, names
from ._scored import Scored

__all__ = [
    "CHECKS",
    "Batch",
    "Description",
    "Facts",
    "Labelled",
    "Listed",
    "Loss",
    "LossOutput",
    "Metrics",
    "Needs",
    "Pairs",
    "Scored",
    "Totals",
    "bibtex",
    "bind",
    "build",
    "check",
    "describe",
    "from_function",
    "is_own",
    "names",
]
