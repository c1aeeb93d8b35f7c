"""The one trainer: any loss of the zoo, or one's own, over pairs, labelled completions or lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from alignlab import losses, models
from alignlab.checkpoints import load_loss, save_loss
from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.evaluation import AnswerMetrics
from alignlab.reference import REFERENCE, fill_caches, frozen_scorers
from alignlab.runtime import evaluating, gathered, placed, uncompiled
from alignlab.scoring import use_liger

from .assembly import (
    LossLike,
    build_loss,
    build_numerics,
    build_policy,
    build_step,
    build_sync,
    check_given,
    check_rows,
    settle_devices,
    settle_options,
    shared_layout,
)
from .finite import RowLosses
from .guard import Quiet, check_reference
from .loaders import Loaders
from .masters import check_masters
from .online import online_sampler
from .record import describe_run
from .resumable import ResumableTrainer
from .resumption import RunIdentity
from .row_metrics import SetMetrics, padding, row_metrics
from .sets import DataSource, TrainingData


class PreferenceTrainer(ResumableTrainer):
    """Trains a causal language model, or a reward model, on preferences with any loss.

    The objective of an optimiser step is ``sum_i w_i * loss_i / rows`` over all its rows, on all ranks and
    micro-batches: 8 rows in one micro-batch, 8 accumulated ones, or 4 on each of two ranks are the same step.

    Args:
        model: the policy, or its path.
        args: a ``PreferenceConfig``.
        loss: a name, a mapping ``{"name": "dpo", "beta": 0.1}``, a ``losses.Loss``, or a function of the batch.
        train_dataset: rows in any format that ``alignlab.data`` reads.
        eval_dataset: the same; it may map names to several sets, and a number holds that many rows of the first out.
            Give every set here: the scores of a reference that is the policy itself are made now.
        processing_class: the tokenizer; by default that of the model's path.
        peft_config: a PEFT configuration; a new adapter is then trained in place of the model's weights.
        ref_model: another reference model, or its path; by default the policy as it is before the first step.
        model_options: how models that are given by path are loaded.
        kwargs: passed on to ``transformers.Trainer`` (callbacks, optimizers, ...).

    Raises:
        ValueError: for data, options or combinations that cannot be trained on, before anything is trained.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the rows of the whole optimiser step

    def __init__(
        self,
        model: str | nn.Module,
        args: PreferenceConfig,
        loss: LossLike = "dpo",
        train_dataset: DataSource | None = None,
        eval_dataset: DataSource | Mapping[str, DataSource] | int | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any | None = None,
        ref_model: nn.Module | str | None = None,
        model_options: ModelOptions | None = None,
        **kwargs: Any,
    ) -> None:
        check_given(model, args, ref_model, kwargs)
        self.loss = build_loss(loss)
        options = settle_options(model, model_options, args, peft_config, self.loss.needs)
        self._told = describe_run(self.loss, args, options, peft_config)
        tokenizer = processing_class or models.load_tokenizer(options)
        self.data = TrainingData(self.loss.needs, args, tokenizer, train_dataset, eval_dataset)
        losses.bind("loss", self.loss, self.data.facts)
        settle_devices(args)
        policy = build_policy(model, options, args, peft_config, self.data)
        check_rows(policy, tokenizer, args, self.data)
        super().__init__(
            model=policy,
            args=args,
            data_collator=list,
            train_dataset=self.data.train,
            eval_dataset=self.data.evaluation,
            processing_class=tokenizer,
            **kwargs,
        )
        self.loss.to(args.device)
        if args.use_liger_kernel:
            with self._placed():
                use_liger(self.model, args.liger_kernel_config)
        self._numerics = build_numerics(args, self.accelerator)
        self._half = self.accelerator.mixed_precision in ("bf16", "fp16")
        if self.data.train is not None:
            brought = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
            check_masters(policy, args, self._numerics, own_optimiser=brought)
        other = ref_model if ref_model is not None else args.ref_model_name_or_path
        self.frozen = frozen_scorers(policy, args, self.loss.needs, options, peft_config, other, self._numerics)
        self._sync = build_sync(self.model, self.frozen, args)
        if self._sync is not None:
            self.add_callback(self._sync)
        pad = models.pad_token_id(tokenizer)
        with self._placed():
            self._fill_caches([self.data.train, *self.data.evaluations()])
            self.layout = shared_layout(policy, self.frozen, args.layout, pad, half=self._half)
        self._answers = AnswerMetrics(
            policy, args, self.data.source_of, tokenizer, self.frozen, self.layout, self._autocast
        )
        self._loaders = Loaders(args, self.loss.needs, self.data, self.frozen, self.layout, pad)
        self._row_losses, self._guard_pending = RowLosses(), False
        self._step = build_step(self.loss, policy, self.frozen, args, self._autocast, self._over_ranks)
        self._step.online = online_sampler(policy, self.data, args, pad, self.layout, self._autocast)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Every forward runs in the trainer's mixed precision, the frozen models' too."""
        dtype = self._numerics.autocast
        return nullcontext() if dtype is None else torch.autocast(self.args.device.type, dtype)

    def _placed(self) -> AbstractContextManager[None]:
        """Within it the policy is where batches go, also before an engine places it; FSDP gets it back as it was."""
        if self.model_wrapped is not self.model:
            return nullcontext()
        return placed(self.model, self.args.device, stays=not self.is_fsdp_enabled)

    def _over_ranks(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum") if self.args.world_size > 1 else value

    def _fill_caches(self, datasets: list[Any]) -> None:
        """Scores, with every cached frozen model, what the cache lacks of these datasets."""
        wanted = [(one.with_format("numpy"), self.data.fields) for one in datasets if one is not None]
        pad = models.pad_token_id(self.processing_class)
        dtype = self._numerics.name(next(self.model.parameters()).dtype)
        fill_caches(self.frozen, self.args, dtype, pad, self._autocast, wanted, half=self._half)

    # ---- data ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns this rank's micro-batches; which rows meet in a step depends on seed and epoch alone."""
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        return self._loaders.training(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> DataLoader[Any]:
        """Returns this rank's part of an evaluation set; rows that will be padded are sorted by length."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        return self._loaders.evaluation(dataset)

    # ---- training --------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        result = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        for one in self.frozen.values():
            one.model.policy_is_trained()
        if resume_from_checkpoint is not None:
            load_loss(self.loss, Path(resume_from_checkpoint), self.data.facts.groups)
            if self._sync is not None:
                self._sync.load(Path(resume_from_checkpoint))
        self._guard_pending = resume_from_checkpoint is None and REFERENCE in self.frozen
        self._throughput.start()
        return result

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Takes the micro-batches of one optimiser step; returns them and the number of rows over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.loss.train()
        self.model_wrapped.train()
        return batches, self._step.begin(self.model_wrapped, batches, self.state.global_step)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns this micro-batch's part of the step's objective."""
        drawn = self._step.drawn(model, inputs)
        quiet = self._step.quiet(model, drawn) if self._guard_pending else None
        part, batch, output = self._step.forward(model, drawn)
        rows = inputs["row"][inputs["real"]]
        if quiet is not None:
            self._check_reference(batch, quiet, torch.from_numpy(rows))
        if output is not None:
            self._row_losses.add(output.loss, rows)
            self._sums.add(row_metrics(output, batch, self.data.groups) | padding(drawn["completions"]))
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:  # its backward moves the weights
            self._row_losses.check(self.train_dataset)
        return (part, output) if return_outputs else part

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs forward and backward of one micro-batch, then moves the loss's state where a step is complete."""
        result: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step.finish(last=self.accelerator.sync_gradients)
        self._guard_pending = self._guard_pending and not self.accelerator.sync_gradients
        return result

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops where a row's loss is not a number, before the weights move, where the norm is waited for anyway."""
        self._row_losses.check(self.train_dataset)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _prepare_input(self, data: Any) -> Any:
        """Moves a batch as it is: the stock method would round scores to the engine's half precision."""
        return send_to_device(data, self.args.device, non_blocking=True)

    def _check_reference(self, batch: Any, quiet: Quiet, rows: Tensor) -> None:
        """Holds the policy against its reference before the first step."""
        check_reference(
            batch,
            quiet,
            rows,
            self.train_dataset,
            tolerance=self.args.reference_tolerance,
            from_policy=self.frozen[REFERENCE].model.from_policy,
            stop=not self.args.allow_reference_mismatch,
        )

    def identity(self) -> RunIdentity:
        """Returns what a checkpoint says of this run."""
        args, coupled = self.args, self.loss.needs.coupled == "micro_batch"
        return RunIdentity(
            config=self._told,
            rows=self.data.identity,
            rows_a_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            ranks=args.world_size,
            cut=args.train_batch_size if coupled else None,
        )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_loss(self.loss, Path(output_dir), self.data.facts.groups)
            if self._sync is not None:
                self._sync.save(Path(output_dir))

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: DataSource | Mapping[str, DataSource] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates on every evaluation set, on one of them by name, or on rows given now; returns the metrics."""
        if eval_dataset is not None and not self.data.is_known(eval_dataset):
            eval_dataset = self.data.prepared_sets(eval_dataset)
            with self._placed():
                self._fill_caches(list(eval_dataset.values()) if isinstance(eval_dataset, Mapping) else [eval_dataset])
        with self._throughput.stopped(), self._placed(), self._numerics.applied(self.model_wrapped):
            result: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return result

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluates a whole set as if it were one optimiser step.

        Totals are summed over the set before any loss, so that no metric depends on batch size or number of ranks;
        fillers count for nothing. A labelled loss on split pairs gets the pairs' margins and accuracy as well.
        """
        model, needs, found = self.model_wrapped, self.loss.needs, SetMetrics(self.data.groups)
        main = self.is_world_process_zero()
        with evaluating(self.loss), evaluating(model):
            totals = None
            if needs.coupled == "step" and needs.totals_in_evaluation:
                totals = self._step.totals(model, self.progress.over(dataloader, f"{description}: totals", main))
            for inputs in self.progress.over(dataloader, description, main):
                inputs = self._prepare_inputs(inputs)
                batch = self._step.scored(model, inputs, mismatched=needs.mismatched and totals is None)
                if len(batch):
                    found.add(self.loss(batch, totals), batch, inputs)
        metrics = found.reduced()
        metrics["loss"] = metrics.pop("objective", float("nan"))
        with uncompiled():  # every token of an answer is another length
            metrics |= self._answers(model, dataloader.dataset)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=sum(gathered(found.rows)))
