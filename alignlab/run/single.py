"""One run, from config to saved model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from alignlab import losses, models
from alignlab.checkpoints import StoppedEarly, StopSignals, holds_checkpoints, only_run_in
from alignlab.config import PreferenceConfig, RunConfig
from alignlab.evaluation import SampleAnswers
from alignlab.runtime import describe_engine, describe_environment, from_main, zero_stage
from alignlab.training import PreferenceTrainer

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Trains as the config says, evaluates, and saves the model into the run folder, which it returns.

    The run folder also gets ``config.yaml`` (resolved), ``environment.json`` (versions, commit), ``data.json`` (what
    reading the data found, fingerprints), ``trainer_state.json`` (every logged metric), ``metrics.json``, and
    unless ``report: false`` is said, ``report.html`` with ``plots/*.png`` and ``samples.json``.

    Raises:
        StoppedEarly: a signal or max_wall_time ended the run before its last step; its checkpoint is saved.
        ValueError: another run is writing to the folder.
    """
    args = config.training_args()
    with only_run_in(Path(args.output_dir)), StopSignals() as signals:
        return _train(config, args, signals)


def _train(config: RunConfig, args: PreferenceConfig, signals: StopSignals) -> Path:
    checkpoint = _checkpoint(args)
    _shard_as_in_training(args)
    trainer = _trainer(config, args)
    folder = Path(args.output_dir)
    if trainer.is_world_process_zero():
        _write_records(folder, config, trainer)
    trainer.early_stop.signals = signals
    samples = _samples(trainer, folder)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.early_stop.reason is not None:
        raise StoppedEarly(f"{trainer.early_stop.reason}; resume_from_checkpoint: auto goes on")
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    if samples is not None:
        samples.after(trainer.model)
    if trainer.is_world_process_zero():
        _write_json(folder / "metrics.json", metrics)
        engine = describe_engine(trainer.model_wrapped, args.world_size)
        _write_json(folder / "environment.json", {**describe_environment(), "engine": engine})
        if config.model.merge_adapter:
            models.merge_adapter(trainer.model, folder / "merged", trainer.processing_class)
        if args.report:
            _report(folder)
    return folder


def _samples(trainer: PreferenceTrainer, folder: Path) -> SampleAnswers | None:
    """Returns what answers held-out prompts before training and after, if the report is to show that."""
    sets, count = trainer.data.evaluations(), trainer.args.report_samples
    if not (trainer.args.report and count and sets):
        return None
    samples = SampleAnswers(trainer.model, trainer.processing_class, sets[0], count, folder)
    trainer.add_callback(samples)
    return samples


def _report(folder: Path) -> None:
    """Writes the report; a failure of it is said, and does not make a failed run of one that has its model."""
    from alignlab.report import write_report

    try:
        logger.info("report: %s", write_report(folder))
    except Exception:
        logger.exception("%s: the run is complete, but its report could not be written", folder)


def score(config: RunConfig) -> dict[str, int]:
    """Fills the score cache with what the run's frozen models say of its data, and stops before training.

    Returns:
        Completions that were scored now, on this rank, by the name of the model; 0 where all were cached.

    Raises:
        ValueError: the run caches no scores.
    """
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
        None if config.peft is None else models.peft_options(config.peft),
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
    """Returns what to resume from, which the trainer checks: a path, or "auto".

    Raises:
        ValueError: if the run folder holds checkpoints of an earlier run, and nothing is said of resuming.
    """
    asked = args.resume_from_checkpoint
    last = from_main(lambda: holds_checkpoints(Path(args.output_dir)))
    if asked in ("auto", "true", "True", True):
        return "auto"
    if asked is None and last is not None:
        raise ValueError(
            f"output_dir: {args.output_dir} holds {last.name} of an earlier run; set resume_from_checkpoint: "
            "auto to continue it, or another output_dir"
        )
    return str(asked) if asked else None


def _write_records(folder: Path, config: RunConfig, trainer: PreferenceTrainer) -> None:
    """Writes what another person needs to know or repeat the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    _write_json(folder / "environment.json", describe_environment())
    sets = {"train": trainer.data.train, **_named(trainer.data.evaluation)}
    rows = {name: {"rows": len(one), "fingerprint": one._fingerprint} for name, one in sets.items() if one is not None}
    _write_json(folder / "data.json", {"sets": rows, "reports": trainer.data.reports})


def _named(evaluation: Any) -> dict[str, Any]:
    return dict(evaluation) if isinstance(evaluation, Mapping) else {"eval": evaluation}


def _write_json(path: Path, value: Any) -> None:
    def plain(item: Any) -> Any:
        return asdict(item) if is_dataclass(item) and not isinstance(item, type) else str(item)

    path.write_text(json.dumps(value, indent=2, default=plain) + "\n", encoding="utf-8")
