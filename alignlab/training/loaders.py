"""The data loaders of a run: samplers, lengths of rows, and collators that read cached scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from alignlab.config import PreferenceConfig
from alignlab.data import CachedScores, Mode, PreferenceCollator, Rows, StepCut, StepSampler, row_tokens
from alignlab.losses import Needs
from alignlab.reference import Frozen

from .sets import TrainingData


class Loaders:
    """Makes the data loaders of a run.

    Args:
        args, data, frozen: those of the trainer; the caches are read when a loader is made.
        needs: what the loss needs of a row.
        layout: how rows are laid out. pad_id: token id that pads them.
    """

    def __init__(
        self,
        args: PreferenceConfig,
        needs: Needs,
        data: TrainingData,
        frozen: Mapping[str, Frozen],
        layout: Mode,
        pad_id: int,
    ) -> None:
        self.args, self.needs, self.data, self.frozen = args, needs, data, frozen
        self.layout, self.pad_id = layout, pad_id

    def training(self, dataset: Any) -> DataLoader[Any]:
        """Returns this rank's micro-batches; which rows meet in a step depends on seed and epoch alone."""
        args = self.args
        sampler = StepSampler(
            len(dataset),
            StepCut(args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size),
            rank=args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy != "sequential",
            drop_last=args.dataloader_drop_last,
            tokens=row_tokens(dataset, self._fields(training=True)),
            length_window=args.length_window,
        )
        return self.over(dataset, sampler, training=True)

    def evaluation(self, dataset: Any) -> DataLoader[Any]:
        """Returns this rank's part of an evaluation set; rows that will be padded are sorted by length."""
        args = self.args
        cut = StepCut(args.per_device_eval_batch_size, ranks=args.world_size)
        by_length: dict[str, Any] = {}
        if self.layout == "padded" and self.needs.coupled != "micro_batch":
            by_length = {"tokens": row_tokens(dataset, self._fields(training=False)), "length_window": len(dataset)}
        sampler = StepSampler(len(dataset), cut, rank=args.process_index, shuffle=False, **by_length)
        return self.over(dataset, sampler, training=False)

    def over(self, dataset: Any, sampler: StepSampler, *, training: bool) -> DataLoader[Any]:
        """Returns the batches of rows that a sampler names."""
        args = self.args
        return DataLoader(
            Rows(dataset.with_format("numpy")),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self._collator(training=training),
            num_workers=args.dataloader_num_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def _collator(self, *, training: bool) -> PreferenceCollator:
        cached = {name: one for name, one in self.frozen.items() if one.cached}
        collator = PreferenceCollator(
            self._fields(training=training),
            self.pad_id,
            mismatched=self.needs.mismatched,
            score_prompt=self.needs.prompt_logps,
            rewards=self.needs.rewards > 0,
            groups=self.data.groups,
            cached=CachedScores(
                {name: one.reader() for name, one in cached.items()},
                hidden=next((one.reader(1) for one in cached.values() if one.hidden), None),
            ),
            mode=self.layout,
        )
        collator.keeps_sequences = self.needs.online
        return collator

    def _fields(self, *, training: bool) -> tuple[str, ...]:
        """Returns the completions of a row that the loss is given; evaluation measures the rejected one in any case."""
        needless = {"mismatched"} | ({"rejected"} if training and not self.needs.rejected else set())
        return tuple(field for field in self.data.fields if field not in needless)
