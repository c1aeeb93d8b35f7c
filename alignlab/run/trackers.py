"""What trackers get besides the metrics: the resolved config, the report, and one run of theirs for one of ours."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignlab.config import RunConfig
from alignlab.training import PreferenceTrainer

from .ending import PAGE
from .records import write_json
from .watched import watched

logger = logging.getLogger(__name__)
IDS = "trackers.json"  # the ids of the trackers' runs, in the run folder: a resumed run goes on in them


@contextmanager
def tracking(config: RunConfig, trainer: PreferenceTrainer) -> Iterator[None]:
    """Keeps the trackers' runs open, from before the first step until the last file of the run is written.

    transformers ends them with the last step, so that the evaluation after it would open runs of its own. What fails
    once training has begun is said and fails nothing.

    Raises:
        ValueError: a tracker could not be started; names it.
    """
    with ExitStack() as stack:
        if trainer.is_world_process_zero():
            stack.enter_context(watched(trainer))
            for name, track in TRACKERS.items():
                if name in (trainer.args.report_to or ()):
                    try:
                        stack.enter_context(track(config, trainer))
                    except Exception as error:
                        raise ValueError(f"report_to: {name} did not start: {type(error).__name__}: {error}") from error
        yield


@contextmanager
def _mlflow(config: RunConfig, trainer: PreferenceTrainer) -> Iterator[None]:
    import mlflow

    folder = Path(trainer.args.output_dir)
    if mlflow.active_run() is not None:  # the caller's, who will end it
        mlflow.log_text(config.to_yaml(), "config.yaml")
        yield
        return
    run = _mlflow_run(folder, trainer.args.run_name)
    with _ended(lambda: mlflow.end_run("FINISHED"), lambda: mlflow.end_run("FAILED")):
        _remember(folder, "mlflow", run.info.run_id)
        mlflow.log_text(config.to_yaml(), "config.yaml")
        mlflow.set_tag("loss", config.loss["name"])
        yield
        _told("mlflow", lambda: _each(mlflow.log_artifact, folder, PAGE))
        _told("mlflow", mlflow.flush_async_logging)


def _mlflow_run(folder: Path, name: str | None) -> Any:
    """Goes on in the run that an earlier start of this run opened; opens a new one where the server has not got it."""
    import mlflow

    if (known := _known(folder, "mlflow")) is not None:
        try:
            return mlflow.start_run(run_id=known)
        except mlflow.MlflowException as error:
            logger.warning("report_to: mlflow cannot go on in run %s, a new one is begun: %s", known, error)
    return mlflow.start_run(run_name=name)


@contextmanager
def _wandb(config: RunConfig, trainer: PreferenceTrainer) -> Iterator[None]:
    import wandb

    folder, ours = Path(trainer.args.output_dir), wandb.run is None
    if ours:
        project = os.environ.get("WANDB_PROJECT", "alignlab")
        opened = wandb.init(project=project, name=trainer.args.run_name, id=_known(folder, "wandb"), resume="allow")
    finish = wandb.finish if ours else lambda exit_code=0: None
    with _ended(lambda: finish(exit_code=0), lambda: finish(exit_code=1)):
        if ours:
            _remember(folder, "wandb", opened.id)
        wandb.config.update({"alignlab": config.to_dict()}, allow_val_change=True)
        yield
        _told("wandb", lambda: _each(lambda path: wandb.log({"report": wandb.Html(path)}), folder, PAGE))


class _TrackioConfig(TrainerCallback):  # type: ignore[misc]
    """Tells trackio the config once transformers has opened its run, which is opened anew for the last evaluation."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import trackio

        if state.is_world_process_zero:
            trackio.config.update({"alignlab": self.config.to_dict()}, allow_val_change=True)


@contextmanager
def _trackio(config: RunConfig, trainer: PreferenceTrainer) -> Iterator[None]:
    import trackio

    args = trainer.args
    trainer.add_callback(_TrackioConfig(config))
    with _ended(trackio.finish, trackio.finish):
        yield
        report = Path(args.output_dir) / PAGE

        def link() -> None:
            opened = {"project": args.project, "name": args.run_name, "space_id": args.trackio_space_id}
            told = {**args.to_dict(), "alignlab": config.to_dict()}  # the last opening's config is the one that is kept
            trackio.init(**opened, resume="allow", embed=False, config=told)
            trackio.log({"report": trackio.Markdown(f"[report]({report.resolve().as_uri()})")})

        if report.is_file():
            _told("trackio", link)


@contextmanager
def _tensorboard(config: RunConfig, trainer: PreferenceTrainer) -> Iterator[None]:
    yield
    _told("tensorboard", lambda: _written(config, trainer))


def _written(config: RunConfig, trainer: PreferenceTrainer) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir:
            with SummaryWriter(log_dir=callback.logging_dir) as writer:
                writer.add_text("config", f"```yaml\n{config.to_yaml()}\n```")
                writer.add_text("report", str((Path(trainer.args.output_dir) / PAGE).resolve()))


TRACKERS: dict[str, Callable[[RunConfig, PreferenceTrainer], Any]] = {
    "mlflow": _mlflow,
    "wandb": _wandb,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
}


@contextmanager
def _ended(well: Callable[[], Any], badly: Callable[[], Any]) -> Iterator[None]:
    """Ends a tracker's run as ours has ended."""
    try:
        yield
    except BaseException:
        _told("tracker", badly)
        raise
    _told("tracker", well)


def _told(name: str, tell: Callable[[], Any]) -> None:
    try:
        tell()
    except Exception:
        logger.exception("%s: the run is over, but the tracker could not be told its end", name)


def _each(tell: Callable[[str], Any], folder: Path, *names: str) -> None:
    for name in names:
        if (folder / name).is_file():
            tell(str(folder / name))


def _known(folder: Path, name: str) -> str | None:
    """Returns the id of the tracker's run that an earlier start of this run opened, or None."""
    known = _held(folder).get(name)
    return known if isinstance(known, str) else None


def _held(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _remember(folder: Path, name: str, value: str) -> None:
    write_json(folder / IDS, {**_held(folder), name: value})
