"""What a model is like: its figures on held-out pairs and on answers that it samples.

Never here: the trainer, or a change to a weight.
"""

from .figures import flat
from .in_training import AnswerMetrics
from .likelihoods import log_likelihoods, sequence_kl
from .samples import SampleAnswers
from .saved import EvalOptions, evaluate

__all__ = [
    "AnswerMetrics",
    "EvalOptions",
    "SampleAnswers",
    "evaluate",
    "flat",
    "log_likelihoods",
    "sequence_kl",
]
