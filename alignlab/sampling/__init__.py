"""Answers that a model draws to prompts, one engine a file.

Never here: a verdict on an answer, or a data set.
"""

from .chat import generate, log_likelihoods, sequence_kl, texts
from .local import end_tokens, sample_answers

__all__ = [
    "end_tokens",
    "generate",
    "log_likelihoods",
    "sample_answers",
    "sequence_kl",
    "texts",
]
