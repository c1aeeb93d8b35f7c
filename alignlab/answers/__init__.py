"""Answers of a model on disk: one file that sampling writes shard by shard, judges complete, and pairing reads.

Never here: a model, a verdict, or a rule: what an answer is, and nothing of how good it is.
"""

from .made import Made, alone_with, file_digest, made_beside
from .rows import Answer, AnswerRow, read_answers, write_answers
from .shards import Shards, array_part

__all__ = [
    "Answer",
    "AnswerRow",
    "Made",
    "Shards",
    "alone_with",
    "array_part",
    "file_digest",
    "made_beside",
    "read_answers",
    "write_answers",
]
