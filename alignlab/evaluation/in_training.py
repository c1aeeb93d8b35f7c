"""Metrics of answers that the policy samples, at each evaluation of a training run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.config import PreferenceConfig
from alignlab.data import Mode
from alignlab.judges import Judge, build_judge
from alignlab.metrics import Figures
from alignlab.reference import REFERENCE, AdapterOff, Frozen, OtherAdapter
from alignlab.runtime import from_main, is_main, unwrap
from alignlab.sampling import end_tokens

from .answers import AnswerRow, Runner, answer_rows, judge_answers
from .drawing import Sampling
from .figures import answer_figures

logger = logging.getLogger(__name__)

# Names in the log, flat, as reports read them -> where the figure stands.
LOGGED = {
    "length": ("length", "tokens"),
    "longer_than_chosen": ("length", "longer"),
    "finished": ("length", "finished"),
    "distinct_1": ("diversity", "distinct_1"),
    "distinct_2": ("diversity", "distinct_2"),
    "self_bleu": ("diversity", "self_bleu"),
    "kl": ("kl", "exact"),
    "kl_k1": ("kl", "k1"),
    "kl_k3": ("kl", "k3"),
    "reward": ("reward", "mean"),
    "pearson_reward_length": ("reward", "length_pearson"),
    "win_rate": ("win", "win_rate"),
    "win_rate_low": ("win", "low"),
    "win_rate_high": ("win", "high"),
    "unjudged": ("win", "unjudged"),
}


class AnswerMetrics:
    """Samples answers to held-out prompts and returns their metrics as ``generation/...``, the same on every rank.

    Every rank answers its share of the prompts; the main one judges and computes. The random numbers of the run are
    not touched: each answer has a generator of its own, with the same seed at every evaluation. The divergence is
    measured where the reference can run beside the policy: a live one, or the base or another adapter under it.

    Args:
        policy, args, tokenizer, frozen, mode, autocast: those of the trainer.
        source_of: returns what a data set was read from, or None.

    Raises:
        ValueError: ``eval_judge`` names a judge that cannot be made, on every rank; or no answer would ever end.
    """

    def __init__(
        self,
        policy: nn.Module,
        args: PreferenceConfig,
        source_of: Callable[[Any], Any],
        tokenizer: PreTrainedTokenizerBase,
        frozen: Mapping[str, Frozen],
        mode: Mode,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.args, self.source_of, self.tokenizer, self.mode, self.autocast = args, source_of, tokenizer, mode, autocast
        self.reference = _runner(frozen.get(REFERENCE))
        self.judge: Judge | None = None
        if args.eval_generations:
            end_tokens(unwrap(policy), tokenizer)
        if args.eval_generations and args.eval_judge is not None:
            from_main(self._make_judge)

    def _make_judge(self) -> None:
        """On the main rank alone, which judges for all."""
        self.judge = build_judge(self.args.eval_judge or "")

    def __call__(self, policy: nn.Module, evaluated: Any) -> dict[str, float]:
        """Returns the metrics of sampled answers to the rows evaluated; nothing where they are switched off."""
        args = self.args
        if not args.eval_generations:
            return {}
        sampling = Sampling(
            args.eval_generations,
            seed=args.seed,
            max_new_tokens=args.eval_max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
        )
        rows = answer_rows(
            policy,
            self.tokenizer,
            evaluated.dataset,
            sampling,
            self.source_of(evaluated.dataset),
            self.reference,
            mode=self.mode,
            autocast=self.autocast,
        )
        return from_main(lambda: self._metrics(rows))

    def _metrics(self, rows: list[AnswerRow]) -> dict[str, float]:
        """Judges and computes, on the main rank."""
        assert is_main()
        if self.judge is not None:
            try:
                judge_answers(self.judge, rows)
            except Exception as error:  # hours of training must not end because of a judge, whatever it raises
                logger.warning("eval_judge: nothing was judged: %s: %s", type(error).__name__, error)
        return logged(answer_figures(rows))


def logged(figures: Figures) -> dict[str, float]:
    """Returns the figures that go to the log, under their names there; those that are not defined are left out."""
    found = {f"generation/{name}": figures.get(one, {}).get(other) for name, (one, other) in LOGGED.items()}
    return {name: float(value) for name, value in found.items() if value is not None and value == value}


def _runner(reference: Frozen | None) -> Runner | None:
    """Returns what runs the reference, where that needs no further copy of the model."""
    if reference is None or (reference.cached and not isinstance(reference.model, (AdapterOff, OtherAdapter))):
        return None
    return reference.model.run
