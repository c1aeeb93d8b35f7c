"""The records of a run: its config, its data and what it stood on, written once it runs; older ones are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignlab.checkpoints import write_whole
from alignlab.config import RunConfig
from alignlab.data import rows_digest
from alignlab.runtime import describe_environment
from alignlab.training import PreferenceTrainer

from .folder import CONFIG, DATA, keep_older


class Records(TrainerCallback):  # type: ignore[misc]
    """Writes what another person needs to know or repeat the run, once it is sure that it runs; keeps older ones."""

    def __init__(self, folder: Path, config: RunConfig, trainer: PreferenceTrainer, digests: Mapping[str, str]) -> None:
        self.folder, self.config, self.digests = folder, config, dict(digests)
        data = trainer.data
        sets = {"train": data.train, **_named(data.evaluation)}
        self.rows = {
            name: {"rows": len(one), "fingerprint": rows_digest(one)} for name, one in sets.items() if one is not None
        }
        self.reports = data.reports

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        text = self.config.to_yaml()
        keep_older(self.folder, text)
        write_whole(self.folder / CONFIG, text)
        write_json(self.folder / "environment.json", describe_environment())
        write_json(self.folder / DATA, {"sets": self.rows, "sources": self.digests, "reports": self.reports})


def _named(evaluation: Any) -> dict[str, Any]:
    return dict(evaluation) if isinstance(evaluation, Mapping) else {"eval": evaluation}


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all; a dataclass by its fields, what JSON lacks as text."""

    def plain(item: Any) -> Any:
        return asdict(item) if is_dataclass(item) and not isinstance(item, type) else str(item)

    write_whole(path, json.dumps(value, indent=2, default=plain) + "\n")
