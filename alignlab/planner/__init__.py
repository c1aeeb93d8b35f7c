"""What a run will take of memory, worked out before it is spent.

Never here: weights: a model is only its shapes here.
"""

from .fitting import Plan, plan
from .memory import GB
from .resolve import resolve

__all__ = [
    "GB",
    "Plan",
    "plan",
    "resolve",
]
