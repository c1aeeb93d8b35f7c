"""A Python function as a judge: a reward, or a comparison asked in both orders."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from importlib import util
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from .judge import Comparison, Judge, Prompt, Verdict, both_orders, by_rewards


class FunctionJudge(Judge):
    """A Python function: ``reward(prompt, completion) -> float``, or ``compare(prompt, one, other) -> float``.

    A function of two arguments is a reward, and the higher reward wins. A function of three returns 1 if ``one`` is
    better, 0 if ``other`` is, 1/2 for a tie; it is asked in both orders, and disagreement is a tie. ``prompt`` is text
    or messages, as the data has it.

    Raises:
        ValueError: the function takes another number of arguments.
    """

    def __init__(self, function: Callable[..., float | None], description: str | None = None) -> None:
        self.function = function
        self.description = description or str(getattr(function, "__name__", type(function).__name__))
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        needed = [one for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]
        if len(needed) not in (2, 3):
            raise ValueError(
                f"judge: {self.description} takes {len(needed)} arguments; allowed are (prompt, completion), a reward, "
                "and (prompt, one, other), a comparison"
            )
        self.compares = len(needed) == 3
        self.kind = "wins" if self.compares else "reward"
        self.failures, self.reason = 0, ""

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns the function's verdicts."""
        return [self._compare(one) if self.compares else self._rewards(one) for one in comparisons]

    def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float | None]:
        """Returns the function's reward of each answer, or win rates where it compares.

        A verifier may return True and False, which are 1 and 0. Where it raises, or returns None or no finite number,
        the answer is unjudged; ``failures`` counts these, and keeps the first reason.
        """
        if self.compares:
            return _Forgiving(self).scores(prompt, answers)
        return [self._score(prompt, one) for one in answers]

    def _score(self, prompt: Prompt, answer: str) -> float | None:
        try:
            value = self.function(prompt, answer)
        except Exception as error:
            self.failed(f"{type(error).__name__}: {error}")
            return None
        if not isinstance(value, (Real, np.bool_)) or not math.isfinite(value):
            self.failed(f"it returned {value!r}")
            return None
        return float(value)

    def failed(self, reason: str) -> None:
        self.failures += 1
        self.reason = self.reason or reason

    def identity(self) -> str:
        """Returns the name of the function, and a hash of the file that it stands in."""
        try:
            source = Path(inspect.getfile(self.function)).read_bytes()
        except (OSError, TypeError):  # made on the spot, in a notebook say
            return self.description
        return f"{getattr(self.function, '__name__', '')} {hashlib.sha256(source).hexdigest()[:32]}"

    def usage(self) -> dict[str, Any]:
        """Returns how many answers it failed on, and the first reason."""
        return {"failures": self.failures, "first_failure": self.reason} if self.failures else {}

    def _rewards(self, one: Comparison) -> Verdict:
        rewards = [self._number(one.prompt, text) for text in (one.answer, one.reference)]
        return by_rewards(*rewards)

    def _compare(self, one: Comparison) -> Verdict:
        first = self._number(one.prompt, one.answer, one.reference)
        second = self._number(one.prompt, one.reference, one.answer)
        for value in (first, second):
            if not 0 <= value <= 1:
                raise ValueError(f"judge: {self.description} returned {value}; a comparison returns 0 to 1")
        return both_orders(first, 1 - second)

    def _number(self, *words: Any) -> float:
        value = self.function(*words)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"judge: {self.description} returned {value!r}; expected a finite number")
        return float(value)


class _Forgiving(Judge):
    """A comparing function whose failures leave comparisons unjudged, and are counted."""

    def __init__(self, inner: FunctionJudge) -> None:
        self.inner = inner

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns the function's verdicts; none where it raises or returns no number from 0 to 1."""
        return [self._judge(one) for one in comparisons]

    def _judge(self, one: Comparison) -> Verdict:
        try:
            [verdict] = self.inner([one])
        except Exception as error:
            self.inner.failed(f"{type(error).__name__}: {error}")
            return Verdict(None, note=str(error))
        return verdict


def function_of(file: Path, name: str) -> Callable[..., float]:
    if not file.is_file():
        raise ValueError(f"judge.name: no file {file}")
    spec = util.spec_from_file_location(f"alignlab_judge_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"judge.name: {file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"judge.name: {file} has no function {name!r}; found {', '.join(public) or 'none'}")
    function: Callable[..., float] = found
    return function
