"""What a run will take of memory, worked out before it is spent.

Never here: weights: a model is only its shapes here.
"""

from .memory import GB, Plan, plan

__all__ = [
    "GB",
    "Plan",
    "plan",
]
