"""The data of a run: tokenised sets, and what the loss is told of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignlab.cache import PreparedSets, default_root
from alignlab.config import PreferenceConfig
from alignlab.data import LIST, NUMBERS, DataOptions, hold_out, rows_digest, value_counts, value_ranges
from alignlab.losses import Facts, Needs
from alignlab.runtime import workers_of_a_rank

logger = logging.getLogger(__name__)
DataSource = Any  # a path, a list of paths or mappings, a datasets.Dataset, or rows


class TrainingData:
    """Training and evaluation sets as the loss wants them.

    Attributes:
        train: tokenised ``datasets.Dataset``, or None.
        evaluation: one set, name -> set, or None.
        reports: what reading each set found, by set name.
        groups: names of the groups, of training first, in the order of the group indices.
        facts: what the loss is told.
        fields: the completions of a row that are scored.

    Raises:
        ValueError: for bad rows, or a group in evaluation that a loss which weighs groups never trained on.
    """

    def __init__(
        self,
        needs: Needs,
        args: PreferenceConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: DataSource | None,
        evaluation: DataSource | Mapping[str, DataSource] | int | None,
    ) -> None:
        self.needs, self.args, self.tokenizer = needs, args, tokenizer
        self.reports: dict[str, Any] = {}
        self._sources: dict[str, DataSource] = {}
        self.train = None if train is None else self._prepared(train, "train")
        if isinstance(evaluation, int):
            if self.train is None:
                raise ValueError("eval_rows are held out of the training data, and there is none")
            self.train, self.evaluation = hold_out(self.train, evaluation)
        else:
            self.evaluation = None if evaluation is None else self.prepared_sets(evaluation)
        self.facts = self._facts()
        self.groups = self._groups()

    @property
    def fields(self) -> tuple[str, ...]:
        """The completions of a row that are scored, as the dataset's columns name them."""
        if self.needs.data == "labelled":
            return ("completion", "mismatched") if self.needs.mismatched else ("completion",)
        if self.needs.data == "lists":
            return (LIST,)
        return ("chosen", "rejected", "gold") if self.needs.gold else ("chosen", "rejected")

    @property
    def reading(self) -> dict[str, Any]:
        """How texts become token ids: what a reward model must be told to read other texts in the same way."""
        args = self.args
        return {
            "max_length": args.max_length,
            "truncation_mode": args.truncation_mode,
            "special_tokens_in_text": args.special_tokens_in_text,
            "chat_template_kwargs": args.chat_template_kwargs or {},
        }

    @cached_property
    def identity(self) -> str:
        """The number of training rows, and a hash of them in their order; whatever changes a row changes it."""
        return "none" if self.train is None else f"{len(self.train)} of hash {rows_digest(self.train)[:12]}"

    def evaluations(self) -> list[Any]:
        """Returns the evaluation sets."""
        if isinstance(self.evaluation, Mapping):
            return list(self.evaluation.values())
        return [] if self.evaluation is None else [self.evaluation]

    def is_known(self, dataset: Any) -> bool:
        """True for a set of this run, or its name."""
        if isinstance(dataset, str):
            return isinstance(self.evaluation, Mapping) and dataset in self.evaluation
        return any(dataset is one for one in (self.evaluation, *self.evaluations()))

    def source_of(self, dataset: Any) -> DataSource | None:
        """Returns what a set of this run, or a part of it, was read from; None for one that came tokenised."""
        return self._sources.get(dataset.info.description)

    def prepared_sets(self, source: DataSource | Mapping[str, DataSource]) -> Any:
        """Returns an evaluation source tokenised: one set, or name -> set."""
        if isinstance(source, Mapping):
            return {name: self._prepared(one, f"eval_{name}") for name, one in source.items()}
        return self._prepared(source, "eval")

    def _prepared(self, source: DataSource, name: str) -> Any:
        """Returns a tokenised dataset; one that is tokenised already is taken as it is."""
        if _is_tokenised(getattr(source, "column_names", None) or ()):
            return source
        args, needs = self.args, self.needs
        if needs.data == "lists" and args.lists_as != "best_worst" and args.should_save:
            logger.warning(
                "lists_as: %s says how losses of pairs read lists; this loss takes them whole", args.lists_as
            )
        options = DataOptions(
            kind=needs.data,
            mismatched=needs.mismatched,
            gold=needs.gold,
            columns=needs.columns,
            rewards=needs.rewards,
            reward_names=tuple(args.reward_names or ()),
            default_label=args.default_label,
            lists_as=args.lists_as,
            max_completions=args.max_completions,
            score_empty_thoughts=args.score_empty_thoughts,
            **self.reading,
            on_bad_row=args.on_bad_row,
            rejected_rows=self._rejected_rows(name),
        )
        root = Path(args.data_cache_dir or args.score_cache_dir or default_root())
        shown = args.should_save and not args.disable_tqdm
        sets = PreparedSets(root, args.data_workers or workers_of_a_rank(), shown)
        prepared = sets.open(source, self.tokenizer, options, args.seed)
        self.reports[name] = prepared.report
        # The description stays with the rows wherever they are held out, selected or formatted.
        prepared.dataset.info.description = f"{name} {len(self._sources)}"
        self._sources[prepared.dataset.info.description] = source
        if args.should_save:
            found = prepared.report
            touched = found.rows_rejected or found.rows_truncated or found.control_tokens_kept
            logger.log(logging.WARNING if touched else logging.INFO, "%s data: %s", name, found.summary())
        return prepared.dataset

    def _rejected_rows(self, name: str) -> Path | None:
        """Returns where the bad rows of a set are written: a file for each, on the main rank."""
        file = "rejected_rows.jsonl" if name == "train" else f"rejected_rows_{name}.jsonl"
        return Path(self.args.output_dir) / file if self.args.should_save else None

    def _facts(self) -> Facts:
        if self.train is None:
            return Facts(0)
        columns = self.train.column_names
        groups = value_counts(self.train, "group") if "group" in columns else {}
        labels = value_counts(self.train, "label") if "label" in columns else {}
        counts = len(self.train), dict(sorted(groups.items())), labels.get(True, 0), labels.get(False, 0)
        read = (*self.needs.columns, "scores") if self.needs.data == "lists" else self.needs.columns
        ranges = value_ranges([self.train, *self.evaluations()], set(read) & {"scores", *NUMBERS})
        return Facts(*counts, self._objectives(self.train), ranges)

    def _objectives(self, train: Any) -> tuple[str, ...]:
        """Returns the names of the explicit rewards that rows carry; numbers where the rows name none."""
        column = next((name for name in ("rewards_chosen", "rewards") if name in train.column_names), None)
        named: tuple[str, ...] = getattr(self.reports.get("train"), "reward_names", ())
        if column is None or not self.needs.rewards:
            return ()
        first = train[0][column]
        first = first[0] if self.needs.data == "lists" else first
        return named or tuple(f"reward_{index}" for index in range(1, len(first) + 1))

    def _groups(self) -> tuple[str, ...]:
        """Returns the names of the groups: those trained on, then those met in evaluation only."""
        trained = tuple(self.facts.groups)
        met = {name for one in self.evaluations() if "group" in one.column_names for name in value_counts(one, "group")}
        new = sorted(met - set(trained))
        if new and self.train is not None and "group" in self.needs.columns:
            raise ValueError(f"the evaluation data has groups that the training data lacks: {', '.join(new)}")
        return (*trained, *new)


def _is_tokenised(columns: Any) -> bool:
    """True for a set that is prepared: its completions have masks, which rows of answers and their tokens need not."""
    names = [name for name in columns if str(name).endswith("_ids") and name != "prompt_ids"]
    return "prompt_ids" in columns and all(name.replace("_ids", "_mask") in columns for name in names)
