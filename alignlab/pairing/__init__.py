"""Judged answers to pairs: rules, their options, and what became of every answer.

Never here: a model, a tokenizer, or a verdict: scores and token ids are read as they are.
"""

from .account import FATES, Account
from .options import PairOptions
from .pairs import pair, pairs
from .rules import RULES, describe, gives

__all__ = ["FATES", "RULES", "Account", "PairOptions", "describe", "gives", "pair", "pairs"]
