"""Batch to per-token log-probabilities and KL, or to values of a reward model: the only room that scores with a model.

Never here: a loss of preferences, a file, or a collective.
"""

from .forward import Distributions, distributions, needed_logits, place, score, token_kl
from .head import LazyHead, head_of
from .kernels import UnsupportedAttention
from .liger import liger_name, use_liger
from .logits import Head
from .packing import FLAT, TREES, UnsupportedModel, model_inputs
from .planned import attention_caps, keep_caps
from .positions import hidden_positions
from .probe import choose_layout
from .rounding import jolted
from .router import Router, router_of
from .values import base_of, value_head, values

__all__ = [
    "FLAT",
    "TREES",
    "Distributions",
    "Head",
    "LazyHead",
    "Router",
    "UnsupportedAttention",
    "UnsupportedModel",
    "attention_caps",
    "base_of",
    "choose_layout",
    "distributions",
    "head_of",
    "hidden_positions",
    "jolted",
    "keep_caps",
    "liger_name",
    "model_inputs",
    "needed_logits",
    "place",
    "router_of",
    "score",
    "token_kl",
    "use_liger",
    "value_head",
    "values",
]
