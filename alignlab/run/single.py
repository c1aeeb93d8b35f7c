"""One run, from config to saved model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback

from alignlab import losses, models
from alignlab.checkpoints import StoppedEarly, StopSignals, only_run_in
from alignlab.config import PreferenceConfig, RunConfig
from alignlab.evaluation import SampleAnswers
from alignlab.runtime import check_launched, from_main, zero_stage
from alignlab.training import PreferenceTrainer

from .ending import ending, write_missing
from .folder import is_done
from .inputs import input_digests
from .machine import on_machine
from .records import Records
from .trackers import tracking

logger = logging.getLogger(__name__)


def train(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Trains as the config says, evaluates, and saves the model into the run folder, which it returns.

    The run folder also gets ``config.yaml`` (resolved), ``environment.json`` (versions, commit), ``data.json`` (what
    reading the data found, fingerprints), ``trainer_state.json`` (every logged metric), ``metrics.json``, and
    unless ``report: false`` is said, ``report.html`` with ``plots/*.png`` and ``samples.json``. A folder that holds
    this very run, finished, is returned as it is.

    Args:
        callbacks: further ones of the trainer; what they raise ends the run.

    Raises:
        StoppedEarly: a signal or max_wall_time ended the run before its last step; its checkpoint is saved.
        ValueError: another run is writing to the folder, or it holds one that this run would overwrite.
        OSError: something could not be written; says what of the run is whole and what is missing.
    """
    config = on_machine(config)
    args = config.training_args()
    folder = Path(args.output_dir)
    with only_run_in(folder), StopSignals() as signals:
        digests = from_main(lambda: input_digests(config))
        if from_main(lambda: is_done(config, folder, digests)):
            from_main(lambda: write_missing(folder, args))
            return folder
        _shard_as_in_training(args)
        trainer = _trainer(config, args)
        for callback in callbacks:
            trainer.add_callback(callback)
        return _train(config, trainer, digests, signals)


def _train(config: RunConfig, trainer: PreferenceTrainer, digests: Mapping[str, str], signals: StopSignals) -> Path:
    folder = Path(trainer.args.output_dir)
    trainer.add_callback(Records(folder, config, trainer, digests))
    trainer.early_stop.signals = signals
    with tracking(config, trainer):
        _run(config, trainer, _samples(trainer, folder))
    return folder


def _run(config: RunConfig, trainer: PreferenceTrainer, samples: SampleAnswers | None) -> None:
    args, folder = trainer.args, Path(trainer.args.output_dir)
    result = trainer.train(resume_from_checkpoint=_checkpoint(args))
    if trainer.early_stop.reason is not None:
        raise StoppedEarly(f"{trainer.early_stop.reason}; resume_from_checkpoint: auto goes on")
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    parts = ending(config, trainer, samples, metrics)
    for done, (name, write) in enumerate(parts.items()):
        try:
            write()
        except OSError as error:
            whole, missing = ", ".join(list(parts)[:done]) or "nothing of the end", ", ".join(list(parts)[done:])
            raise OSError(f"{name}: {error}. Whole in {folder}: {whole}; missing: {missing}") from error


def _samples(trainer: PreferenceTrainer, folder: Path) -> SampleAnswers | None:
    """Returns what answers held-out prompts before training and after, if the report is to show that."""
    sets, count = trainer.data.evaluations(), trainer.args.report_samples
    if not (trainer.args.report and count and sets) or trainer.loss.needs.values:
        return None
    samples = SampleAnswers(trainer.model, trainer.processing_class, sets[0], count, folder)
    trainer.add_callback(samples)
    return samples


def score(config: RunConfig) -> dict[str, int]:
    """Fills the score cache with what the run's frozen models say of its data, and stops before training.

    Returns:
        Completions that were scored now, on this rank, by the name of the model; 0 where all were cached.

    Raises:
        ValueError: the run caches no scores.
    """
    config = on_machine(config)
    args = config.training_args()
    _shard_as_in_training(args)
    frozen = _trainer(config, args).frozen
    cached = {name: one.forwards for name, one in frozen.items() if one.cached}
    if not cached:
        found = f"reference: {args.reference}, loss.name: {config.loss['name']}"
        raise ValueError(f"nothing to score: this run keeps no scores in the cache ({found}; allowed: cached)")
    return cached


def _shard_as_in_training(args: PreferenceConfig) -> None:
    """Starts the process group that ZeRO-3 shards weights over as they are loaded; it is not implied on CPU."""
    check_launched(args.deepspeed)
    if args.deepspeed is not None and args.use_cpu and zero_stage(args.deepspeed) == 3:
        import deepspeed

        deepspeed.init_distributed("gloo")


def _trainer(config: RunConfig, args: PreferenceConfig) -> PreferenceTrainer:
    loss = losses.build(config.loss)
    _check_own(loss, config.loss["name"])
    evaluation = config.data.eval if config.data.eval_rows is None else config.data.eval_rows
    return PreferenceTrainer(
        config.model.name_or_path,
        args,
        loss,
        config.data.train,
        evaluation,
        models.load_tokenizer(config.model),
        None if config.peft is None else models.peft_options(config.peft, loss.needs.values),
        model_options=config.model,
    )


def _check_own(loss: losses.Loss, name: str) -> None:
    """Puts a loss of the user's own through the contract, which takes some hundredths of a second.

    Raises:
        ValueError: it cannot be trained on. Another breach is a warning: it may be meant, and may not matter here.
    """
    findings = losses.check(loss) if losses.is_own(loss) else []
    for finding in findings:
        if finding.fatal:
            raise ValueError(f"loss.name: {name} cannot be trained on: {finding.message}")
        logger.warning("loss.name: %s does not keep the contract of a loss: %s", name, finding)


def _checkpoint(args: PreferenceConfig) -> str | None:
    """Returns what to resume from, which the trainer checks: a path, or "auto"."""
    asked = args.resume_from_checkpoint
    if asked in ("auto", "true", "True", True):
        return "auto"
    return str(asked) if asked else None
