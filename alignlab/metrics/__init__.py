"""Metrics as `evaluate` modules, one a file, that load by path and offline; their formulas stand in formulas.py.

Never here: a model or a tokenizer: numbers and texts go in, figures come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import formulas, rewardbench
from .statistics import Figures, standard_error

__all__ = ["Figures", "formulas", "load", "names", "path", "rewardbench", "standard_error"]

FOLDER = Path(__file__).resolve().parent
_NOT_METRICS = ("__init__", "formulas", "ngrams", "orders", "rewardbench", "statistics")


def names() -> list[str]:
    """Returns the names of the metrics: the files of this folder."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in _NOT_METRICS)


def path(name: str) -> str:
    """Returns the file of a metric, which ``evaluate.load`` takes.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in names():
        raise ValueError(f"no metric {name!r}; there are {', '.join(names())}")
    return str(FOLDER / f"{name}.py")


def load(name: str, **options: Any) -> Any:
    """Returns the ``evaluate.Metric`` of this name; ``options`` are those of ``evaluate.load``."""
    import evaluate

    return evaluate.load(path(name), **options)
