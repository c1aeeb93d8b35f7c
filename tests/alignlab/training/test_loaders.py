"""Data loaders take from the config how their workers start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from making import make_model, make_rows

from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_start_as_the_config_says(tmp_path: Path, tokenizer: Any, way: str) -> None:
    args = PreferenceConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        disable_tqdm=True,
        dataloader_num_workers=1,
        dataloader_multiprocessing_context=way,
    )
    loader = PreferenceTrainer(make_model(), args, "simpo", make_rows(8), None, tokenizer).get_train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == way
