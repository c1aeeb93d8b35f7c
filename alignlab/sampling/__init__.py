"""Answers that a model draws to prompts, one engine a file.

Never here: a verdict on an answer, or a data set.
"""

from .chat import generate, texts
from .local import end_tokens, sample_answers

__all__ = ["end_tokens", "generate", "sample_answers", "texts"]
