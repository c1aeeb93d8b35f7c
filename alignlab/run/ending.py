"""What a run writes when it has trained: model, records and report, each of them whole or not there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab import models
from alignlab.checkpoints import is_peoples_own, put_in_place, write_whole
from alignlab.config import PreferenceConfig, RunConfig
from alignlab.evaluation import SampleAnswers
from alignlab.runtime import describe_engine, describe_environment
from alignlab.training import PreferenceTrainer

from .folder import FINISHED, remove_replaced
from .records import write_json

logger = logging.getLogger(__name__)
LOCAL = [".*", "_*", "checkpoint-*", "logs/*", "runs/*", "training_args.bin", "trackers.json", "rejected_rows.jsonl"]
_UNFILLED = "# Model Card for Model ID"  # what PEFT writes beside an adapter
STATE, PAGE, CARD = "trainer_state.json", "report.html", "README.md"
_PUSHED = ".pushed"  # says where the run was uploaded to


def ending(
    config: RunConfig, trainer: PreferenceTrainer, samples: SampleAnswers | None, metrics: Mapping[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Returns what a run writes at its end, by name, in order; every rank calls what it gets."""
    folder, main = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    save = partial(trainer.save_model, _internal_call=True)  # what goes to the hub goes there once all is whole
    parts: dict[str, Callable[[], Any]] = {"model": save, STATE: trainer.save_state}
    if samples is not None:
        parts["samples.json"] = lambda: samples.after(trainer.model)
    if not main:
        return parts
    engine = describe_engine(trainer.model_wrapped, trainer.args.world_size)
    described = {**describe_environment(), "engine": engine}
    parts["environment.json"] = partial(write_json, folder / "environment.json", described)
    if config.model.merge_adapter:
        parts["merged"] = partial(_merge, trainer, folder / "merged")
    parts[FINISHED] = partial(_finish, trainer, metrics, [CARD, *([PAGE] if trainer.args.report else [])])
    if trainer.args.report:
        parts[PAGE] = partial(write_page, folder)
    parts[CARD] = partial(_write_card, folder)
    if trainer.args.push_to_hub:
        parts["the hub"] = partial(_push, folder, trainer.args, trainer.hub_model_id)
    return parts


def _finish(trainer: PreferenceTrainer, metrics: Mapping[str, Any], to_come: Sequence[str]) -> None:
    """Says that all before this is whole, so that what the run replaces may go, and checkpoints beyond the limit.

    Args:
        to_come: what is written yet; those of a shorter run are deleted, or a kill would leave them for this run's.
    """
    folder = Path(trainer.args.output_dir)
    for path in (folder / name for name in (*to_come, _PUSHED)):
        if not is_peoples_own(path):
            path.unlink(missing_ok=True)
    write_json(folder / FINISHED, metrics)
    remove_replaced(folder)
    trainer.rotate_checkpoints()


def _merge(trainer: PreferenceTrainer, folder: Path) -> None:
    with put_in_place(folder, "model", together=False) as aside:
        models.merge_adapter(trainer.model, aside, trainer.processing_class)


def _push(folder: Path, args: PreferenceConfig, place: str = "") -> None:
    """Uploads the folder of the finished run, without checkpoints, as one commit.

    Args:
        place: the repository; empty where nothing was trained, and it is not known whether there is one.

    Raises:
        OSError: it could not be uploaded; the run itself is whole.
    """
    from huggingface_hub import create_repo, upload_folder

    name = place or args.hub_model_id or folder.absolute().name
    try:
        if not place:
            name = create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True).repo_id
        done = upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Model trained by alignlab",
            token=args.hub_token,
            revision=args.hub_revision,
            ignore_patterns=LOCAL,
        )
    except Exception as error:
        again = f"hf upload {name} {folder}"
        raise OSError(f"{name} was not uploaded ({error}); {again} does it") from error
    logger.info("on the hub: %s", done.commit_url)
    write_whole(folder / _PUSHED, f"{done.commit_url}\n")


def write_missing(folder: Path, args: PreferenceConfig) -> None:
    """Writes what a finished run lacks that was killed between its last file and its report, card or upload."""
    if args.report and not (folder / PAGE).is_file():
        write_page(folder)
    card = folder / CARD
    if not card.is_file() or _UNFILLED in card.read_text(encoding="utf-8", errors="replace"):
        _write_card(folder)
    if args.push_to_hub and not (folder / _PUSHED).is_file():
        logger.warning("%s: nothing says that this run was uploaded; it is now", folder)
        _push(folder, args)


def _write_card(folder: Path) -> None:
    """Writes the model card; as with the report, a failure of it is said, and the run is complete."""
    from alignlab.report import write_card

    try:
        with put_in_place(folder, "card", together=False) as aside:
            write_card(folder, aside / CARD)
    except Exception:
        logger.exception("%s: the run is complete, but its model card could not be written", folder)


def write_page(folder: Path) -> None:
    """Writes the report; a failure of it is said, and does not make a failed run of one that has its model."""
    from alignlab.report import write_report

    try:
        with put_in_place(folder, "report", together=False) as aside:
            write_report(folder, aside / PAGE)
    except Exception:
        logger.exception("%s: the run is complete, but its report could not be written", folder)
