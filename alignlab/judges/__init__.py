"""Who says which of two answers is better: a function, a reward model, a language model behind an address.

Never here: the policy: a judge sees texts.
"""

from .answers import judge_answers
from .build import build_judge, check_judge
from .judge import DISAGREE, Comparison, Judge, Prompt, Verdict

__all__ = ["DISAGREE", "Comparison", "Judge", "Prompt", "Verdict", "build_judge", "check_judge", "judge_answers"]
