"""A language model behind an OpenAI-compatible address: requests, retries, and what they may cost.

Never here: what is asked, or what is made of a reply.
"""

from .budget import Budget, LimitReached, Limits, UnknownCost
from .client import ChatClient, ClientOptions, Refused, Unanswered, Unreachable, check_positive

__all__ = [
    "Budget",
    "ChatClient",
    "ClientOptions",
    "LimitReached",
    "Limits",
    "Refused",
    "Unanswered",
    "UnknownCost",
    "Unreachable",
    "check_positive",
]
