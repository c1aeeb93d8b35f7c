"""Answers that a model draws to prompts, one engine a file.

Never here: a verdict on an answer, or a data set.
"""

from .answering import Sampled, sample
from .benchmarks import answer_benchmark
from .build import check_engine
from .chat import generate, texts
from .local import end_tokens, sample_answers
from .options import SampleOptions

__all__ = [
    "SampleOptions",
    "Sampled",
    "answer_benchmark",
    "check_engine",
    "end_tokens",
    "generate",
    "sample",
    "sample_answers",
    "texts",
]
