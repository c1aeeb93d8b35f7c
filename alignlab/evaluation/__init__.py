"""What a model is like: its figures on held-out pairs and on answers that it samples.

Never here: the trainer, or a change to a weight.
"""

from .drawing import first_of_each_prompt
from .figures import flat
from .harness import HarnessOptions, run_harness
from .in_training import AnswerMetrics
from .likelihoods import log_likelihoods, sequence_kl
from .samples import SampleAnswers
from .saved import EvalOptions, evaluate

__all__ = [
    "AnswerMetrics",
    "EvalOptions",
    "HarnessOptions",
    "SampleAnswers",
    "evaluate",
    "first_of_each_prompt",
    "flat",
    "log_likelihoods",
    "run_harness",
    "sequence_kl",
]
