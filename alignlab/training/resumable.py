"""The part of the trainer that saves and resumes: checkpoints whole or not at all, one run a folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from alignlab import models
from alignlab.checkpoints import (
    EarlyStop,
    check,
    is_of_other_ranks,
    load_universal,
    newest_good,
    only_run_in,
    put_in_place,
    rotate,
    write_whole,
    written_aside,
)
from alignlab.config import Difference, PreferenceConfig, duration
from alignlab.runtime import check_engine, compiled_layers, from_main, gathered, leave_uncompiled, zero_stage

from .progress import use_progress
from .resumption import ROWS_A_STEP, RunIdentity, apply_settings, compare, is_of_another_schedule, own_settings
from .standstill import check_moves
from .summed import SummedTrainer

logger = logging.getLogger(__name__)


class ResumableTrainer(SummedTrainer):
    """A ``transformers.Trainer`` with checkpoints that are complete, checked, or not there."""

    args: PreferenceConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        leave_uncompiled(self.accelerator)
        self.progress = use_progress(self, self.args.progress, self.args.progress_seconds)
        self.early_stop = EarlyStop(duration("max_wall_time", self.args.max_wall_time))
        self.add_callback(self.early_stop)
        self.differences: list[Difference] = []  # between the run that wrote a checkpoint and this one
        self._settings: list[dict[str, Any]] = []

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        """Makes the run's place on the hub, before anything is trained.

        Raises:
            ValueError: there is no token, the hub cannot be reached, or it refuses.
        """
        try:
            super().init_hf_repo(*args, **options)
        except Exception as error:  # of the hub's client, of its connections, of what it stands on
            raise ValueError(
                f"push_to_hub: the hub gives no place to push to: {error}; set HF_TOKEN to a token that may write, or "
                "leave push_to_hub out and upload the folder later (hf upload)"
            ) from error

    def identity(self) -> RunIdentity:
        """Returns what a checkpoint says of this run, and what is compared when one is resumed."""
        raise NotImplementedError

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, alone in its output folder.

        Args:
            resume_from_checkpoint: a checkpoint; or "auto": the newest in the output folder whose files are what was
                written, or a fresh start where there is none; or True: the same, but there must be one.

        Raises:
            ValueError: the checkpoint is damaged, or of a run that this one cannot go on from, or may not unless
                ``resume_with_changes`` says so; or another run is writing to the folder.
        """
        folder = Path(self._get_output_dir(trial))
        asked = self.args
        compiling = compiled_layers(self.model, asked.torch_compile_backend, asked.torch_compile_mode)
        with only_run_in(folder), compiling if asked.torch_compile else nullcontext():
            checkpoint = self._checked(resume_from_checkpoint, folder)
            self.differences = []
            if checkpoint is not None:
                agreed = self.args.resume_with_changes
                self.differences = from_main(lambda: compare(Path(checkpoint), self.identity(), agreed))
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Says what to call instead: a preference loss has no predictions to return."""
        raise ValueError("predict(): there are no predictions; evaluate() returns metrics, `alignlab eval --rows` rows")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Names the key and the metrics that there are where the one that is asked for is none of them."""
        try:
            return bool(super()._determine_best_metric(metrics, trial))
        except KeyError as error:
            names = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            asked = self.args.metric_for_best_model
            raise ValueError(f"metric_for_best_model: there is no {asked!r}; found {', '.join(names)}") from error

    def _checked(self, asked: str | bool | None, folder: Path) -> str | None:
        """Returns the checkpoint to resume from, every file of it checked."""
        if not asked:
            return None
        trust = self.args.trust_checkpoint
        if asked is True or asked == "auto":
            found = newest_good(folder, trust)
            if found is None and asked is True:
                raise ValueError(f"resume_from_checkpoint: {folder} holds no checkpoint that can be resumed")
            return None if found is None else str(found)
        check(Path(asked), trust)
        return asked

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wraps the model, and resumes what other numbers of ranks wrote too, which the engine itself cannot read."""
        check_moves(self.model, self.args, self.train_dataset, max_steps)
        converts = self.is_deepspeed_enabled and is_of_other_ranks(resume_from_checkpoint)
        native = None if converts else resume_from_checkpoint
        result = super()._prepare_for_training(max_steps, train_dataloader, native)
        asked = self.args
        check_engine(self.model_wrapped, asked.deepspeed, asked.world_size, fsdp=bool(asked.fsdp))
        if converts and resume_from_checkpoint is not None:
            strict = not models.is_peft(self.model)
            load_universal(self.model_wrapped, Path(resume_from_checkpoint), Path(asked.output_dir), strict=strict)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        if is_of_another_schedule(self.differences):
            self._apply_settings()
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights; the policy's adapter also where others lie beside it, with which 5.19 leaves it out."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        policy: Any = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        own, others = folder / SAFETENSORS_WEIGHTS_NAME, any(folder.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}"))
        if self.is_fsdp_enabled:  # which has read its own shards
            return
        if models.is_peft(policy) and policy.active_adapter == "default" and own.is_file() and others:
            policy.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        """Makes the optimiser as usual; one whose package is missing is an error of the config."""
        try:
            return super().create_optimizer(*args, **options)
        except ImportError as error:
            raise ValueError(f"optim: {getattr(self.args.optim, 'value', self.args.optim)}: {error}") from error

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Makes the schedule as usual, and notes the optimiser's settings before a checkpoint is loaded into it."""
        try:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:  # options that the schedule's function does not take, or lacks
            kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise ValueError(
                f"lr_scheduler_kwargs: {kind} cannot be made of {self.args.lr_scheduler_kwargs or {}}: {error}"
            ) from error
        self._settings = own_settings(self.optimizer)
        return scheduler

    def _apply_settings(self) -> None:
        step = self.state.global_step
        rates = apply_settings(self.optimizer, self.lr_scheduler, self._settings, step)
        if rates is not None and self.is_world_process_zero():
            logger.warning("the learning rate of step %s is %.4g; it was to be %.4g", step + 1, rates[1], rates[0])

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *rest: Any) -> tuple[int, int]:
        """Restores the state of a checkpoint, and lets this run's intervals of logging and saving count.

        Where the rows of a step are others, which is allowed between epochs only, steps are counted anew, as if all
        had had as many rows as those to come.
        """
        done: tuple[int, int] = super()._init_training_state(max_steps, num_update_steps_per_epoch, *rest)
        self.state.compute_steps(self.args, max_steps)
        counts_anew = any(one.key == ROWS_A_STEP for one in self.differences)
        checkpoint = rest[1]
        self.read_sums(checkpoint, counts_anew)
        if counts_anew:
            done = round(self.state.epoch), 0
            self.state.global_step = done[0] * num_update_steps_per_epoch
        if checkpoint is not None and self.args.should_save:  # a killed run may have left one too many
            self.rotate_checkpoints(Path(checkpoint).name, trial=rest[2])
        return done

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trains nothing where the checkpoint was of the last step: the stock loop would take one step too many."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes what the stock method writes, aside; all ranks take part."""
        run_folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        self._refuse_broken_weights()
        if trial is None:
            self.store_flos()
        final = run_folder / f"checkpoint-{step}"
        complete = not self.args.save_only_model
        with written_aside(final, zero_stage(self.args.deepspeed), complete) as aside:
            super().save_model(str(aside), _internal_call=True)
            if complete:
                self._save_optimizer_and_scheduler(str(aside))
                self._save_scaler(str(aside))
                self._save_rng_state(str(aside))
                self.save_sums(aside)
                if self.args.should_save:
                    self.identity().write(aside)
            if self.state.best_global_step:
                best = run_folder / f"checkpoint-{self.state.best_global_step}"
                if best == final or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.stateful_callbacks = self._callback_states()
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            self.rotate_checkpoints(final.name, trial=trial)

    def rotate_checkpoints(self, *keep: str, trial: Any = None) -> None:
        """Deletes the oldest checkpoints beyond ``save_total_limit``; never the best one, nor those of these names."""
        best = self.state.best_model_checkpoint
        kept = {*keep, *([Path(best).name] if best else [])}
        rotate(Path(self._get_output_dir(trial)), self.args.save_total_limit, kept)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes model and tokenizer aside and puts them in place: a folder has a whole model or none.

        Raises:
            OSError: it could not be written; nothing of it was put in place.
        """
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or self.args.should_save:
            with put_in_place(Path(output_dir or self.args.output_dir), "model", together=sharded) as aside:
                super().save_model(str(aside), _internal_call=True)
                if self._in_parts():
                    self._save(str(aside), state_dict=self.accelerator.get_state_dict(self.model))
                if self.args.should_save:
                    models.save_as_plain(self.model, aside)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Writes a model; a tied weight once, also where an engine's ranks were asked for it under both its names."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        found = state_dict or {}
        for name, source in tied.items():
            if name in found and source in found and torch.equal(found[name], found[source]):
                del found[name]
        super()._save(output_dir, state_dict)
        models.save_reading(self.model, Path(output_dir or self.args.output_dir))

    def _in_parts(self) -> bool:
        """True where checkpoints keep the parts of FSDP's ranks, and the stock Trainer writes no whole model at all."""
        return self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def save_state(self) -> None:
        """Writes ``trainer_state.json``, which is whole or as it was."""
        if self.is_world_process_zero():
            state = json.dumps(asdict(self.state), indent=2, sort_keys=True) + "\n"
            write_whole(Path(self.args.output_dir) / TRAINER_STATE_NAME, state)

    def _callback_states(self) -> dict[str, Any]:
        """Returns what callbacks want to be saved, by class; a list where a class has several."""
        states: dict[str, list[Any]] = {}
        for one in [*self.callback_handler.callbacks, self.control]:
            if isinstance(one, ExportableState):
                states.setdefault(type(one).__name__, []).append(one.state())
        return {name: found if len(found) > 1 else found[0] for name, found in states.items()}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops before a gradient that is not a number gets into the weights; the losses may not show it yet."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        engine_judges = self.is_deepspeed_enabled or self.accelerator.scaler is not None  # these skip a bad step
        if not engine_judges and norm is not None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient of step {self.state.global_step + 1} is not finite, though the loss of every row is; "
                "the weights are as they were"
            )
        return norm

    def _refuse_broken_weights(self) -> None:
        """Raises FloatingPointError, on all ranks, if a trained weight is not a number."""
        broken = [name for found in gathered(list(self._broken_weights())) for name in found]
        if broken:
            raise FloatingPointError(
                f"after step {self.state.global_step} {len(broken)} trained weights are not finite, first {broken[0]}; "
                "no checkpoint is made of them, and those that are there are kept"
            )

    def _broken_weights(self) -> Iterator[str]:
        for name, weight in self.model.named_parameters():
            mine = getattr(weight, "ds_tensor", weight)  # under ZeRO-3 this rank's part
            if weight.requires_grad and mine.is_floating_point() and not bool(torch.isfinite(mine.detach()).all()):
                yield name
