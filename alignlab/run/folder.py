"""The folder of a run: what an earlier run left in it, and what becomes of that."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from alignlab.checkpoints import holds_checkpoints, is_peoples_own
from alignlab.config import RunConfig, differences, is_written, makes_another_run, read_yaml

from .inputs import other_inputs, refuse_other_models

logger = logging.getLogger(__name__)

CONFIG, DATA, FINISHED = "config.yaml", "data.json", "metrics.json"  # the last is written last, once all else is whole
_REPLACING, _REPLACED = ".replacing-run", ".replaced-run-"  # half aside, and wholly
_MODELS = ("config.json", "adapter_config.json")


def is_done(config: RunConfig, folder: Path, digests: Mapping[str, str]) -> bool:
    """True where the folder holds this very run, finished; makes room where it holds another that may go.

    Raises:
        ValueError: it holds a run, a checkpoint or a model that this run would overwrite, and nothing is said of that;
            or checkpoints of a run that began with other weights.
    """
    _put_back(folder)
    asked, last = config.training.get("resume_from_checkpoint"), holds_checkpoints(folder)
    finished, resumes = (folder / FINISHED).is_file() and _has_weights(folder), asked not in (None, False)
    if finished and not (others := _others(config, folder, digests)):
        logger.warning("%s holds this run, finished: there is nothing to do", folder)
        remove_replaced(folder)
        return True
    if finished and not (resumes and last):
        found = f"a finished run of another config or other data ({'; '.join(others[:3])})"
    elif last is not None and not resumes:
        found = f"{last.name} of an earlier run"
    elif last is None and (model := _model(folder)) and _others(config, folder, digests):
        found = f"a model ({model}) that is of no run of this config"
    else:
        if last is not None:
            refuse_other_models(config, _sources(folder), digests, last)
        return False
    if not config.training.get("overwrite_output_dir"):
        resume = "resume_from_checkpoint: auto to continue it, or " if last is not None else ""
        raise ValueError(
            f"output_dir: {folder} holds {found}; set {resume}another output_dir, or overwrite_output_dir: true to put "
            "it aside until this run is whole, and then delete it"
        )
    _put_aside(folder, found)
    return False


def _others(config: RunConfig, folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Returns what tells this run from the one in the folder, so far as it matters; something where none is known."""
    if not (folder / CONFIG).is_file():
        return [f"it has no {CONFIG}"]
    told = config.to_dict()
    before = {key: value for key, value in read_yaml(folder / CONFIG).items() if key in told}
    now = {key: value for key, value in told.items() if key in before}
    found = [one for one in differences(before, now) if makes_another_run(one)]
    return [f"{one.key}: {one.before} -> {one.now}" for one in found] + other_inputs(_sources(folder), digests)


def _has_weights(folder: Path) -> bool:
    return any(path for pattern in ("*model*.safetensors", "*model*.bin") for path in folder.glob(pattern))


def _sources(folder: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((folder / DATA).read_text(encoding="utf-8")).get("sources", {})
    except (OSError, ValueError):
        return {}
    return found


def _model(folder: Path) -> str | None:
    return next((name for name in _MODELS if (folder / name).is_file()), None)


def _put_aside(folder: Path, found: str) -> None:
    """Moves what a run has written into a run folder into a hidden folder in it; what else lies there stays."""
    moving = folder / _REPLACING
    moving.mkdir()
    for entry in sorted(folder.iterdir()):
        if is_written(entry.name) and not is_peoples_own(entry):
            entry.rename(moving / entry.name)
    number = 1
    while (aside := folder / f"{_REPLACED}{number}").exists():
        number += 1
    moving.rename(aside)
    logger.warning("%s held %s: it stands in %s until this run is whole, and is then deleted", folder, found, aside)


def _put_back(folder: Path) -> None:
    """Moves back what a killed start had put aside by half: nothing was written into its place yet."""
    moving = folder / _REPLACING
    if moving.is_dir():
        for entry in sorted(moving.iterdir()):
            if (there := folder / entry.name).is_dir():  # charts that somebody drew since
                shutil.rmtree(there)
            entry.rename(there)
        moving.rmdir()
        logger.warning("%s: a killed start was putting the run in it aside; it is back", folder)


def remove_replaced(folder: Path) -> None:
    """Deletes what this run has replaced, once it is whole itself."""
    for aside in folder.glob(f"{_REPLACED}*"):
        shutil.rmtree(aside, ignore_errors=True)
        logger.warning("%s: the run that this one replaces is deleted", aside)


def keep_older(folder: Path, config: str) -> None:
    """Keeps config and metrics of what ran here before as ``config.1.yaml`` and ``metrics.1.json``, ``.2`` and so on.

    Args:
        config: that of the run which begins; where the one that is there is the same and no run is finished, it stays.
    """
    former = folder / CONFIG
    if not former.is_file() or (former.read_text(encoding="utf-8") == config and not (folder / FINISHED).exists()):
        return
    finished, number = folder / FINISHED, 1
    while any(one.exists() and _numbered(one, number).exists() for one in (finished, former)):
        number += 1
    for one in (finished, former):  # the metrics first: alone they would be taken for those of the run that begins
        if one.exists():
            one.rename(_numbered(one, number))
    logger.info("%s: the config of what ran here before is kept as config.%s.yaml", folder, number)


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.{number}{file.suffix}")
